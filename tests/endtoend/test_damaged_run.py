"""Whatever file of a run is damaged, the same command makes it again or says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import FIXTURES
from typer.testing import CliRunner

import linearize
from linearize.cli.app import app
from linearize.errors import LinearizeError

pytestmark = pytest.mark.slow

FIXTURE = FIXTURES / "run_folder"
RUN = Path("runs/old")
FILES = (
    "stages/1-align/done.json", "stages/2-distill/done.json", "stages/1-align/metrics.jsonl", "done.json",
    "seeding.json", "environment.json", "evaluation/summary.json", "evaluation/examples.json",
    "evaluation/answers/glance.attribute.student.json", "evaluation/answers/glance.ocr.agreement.json",
    "report/results.json", "student/config.json", "student/model.safetensors",
    "stages/2-distill/checkpoints/step-00000005/manifest.json",
    "stages/2-distill/checkpoints/step-00000005/progress.json",
)  # fmt: skip


def flip_a_bit(path: Path, drawn: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    path.write_bytes(content)


def cut_off(path: Path, drawn: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: drawn.randrange(path.stat().st_size)])


def fill_with_bytes_that_are_no_text(path: Path, drawn: random.Random) -> None:
    path.write_bytes(drawn.randbytes(200))


def lose_a_key(path: Path, drawn: random.Random) -> None:
    if path.suffix != ".json":
        pytest.skip("keys are lost from JSON alone")
    content = json.loads(path.read_text())
    if isinstance(content, dict):
        content.pop(drawn.choice(sorted(content)))
    path.write_text(json.dumps(content))


DAMAGES = (flip_a_bit, cut_off, fill_with_bytes_that_are_no_text, lose_a_key)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run that today's code finished."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(FIXTURE / "teacher", folder / "teacher")
    shutil.copy(FIXTURE / "recipe.toml", folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        linearize.run("recipe.toml")
    finally:
        os.chdir(before)
    return folder


# Each file has a bit turned, and one of the other damages.
CASES = [(name, damage) for i, name in enumerate(FILES) for damage in (flip_a_bit, DAMAGES[1 + i % 3])]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_is_made_again_or_reported(
    name: str, damage: Callable[[Path, random.Random], None], finished: Path, tmp_path: Path, demo: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    expected = _scores(RUN)
    damage(RUN / name, random.Random(f"{name} {damage.__name__}"))
    refusal = ""
    try:
        linearize.run("recipe.toml")
    except LinearizeError as error:
        refusal = str(error)
    if refusal:
        assert str(RUN) in refusal
    else:
        assert _scores(RUN) == expected
        linearize.load_student(RUN / "student")
    done = CliRunner().invoke(app, ["report", str(RUN)])
    assert done.exit_code in (0, 1), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


def _scores(run: Path) -> dict[str, Any]:
    results = json.loads((run / "report" / "results.json").read_text())
    stages = [{key: stage[key] for key in ("name", "first_loss", "last_loss")} for stage in results["stages"]]
    return {key: results[key] for key in ("tasks", "kl", "top1_agreement", "dials")} | {"stages": stages}
