"""A run folder of commit 4d56c0e is read by the code of today: finished it is found finished, killed it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkout import FIXTURES
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

import linearize
from linearize.cli.app import app

pytestmark = pytest.mark.slow

FIXTURE = FIXTURES / "run_folder"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder in a copy of the directory that it was made in, which is the current one."""
    shutil.copytree(FIXTURE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Path("runs/old")


def test_a_finished_old_run_is_found_finished(old: Path) -> None:
    before = json.loads((old / "report" / "results.json").read_text())
    result = linearize.run("recipe.toml")
    assert result.results == before


def test_a_killed_old_run_goes_on_and_ends_with_the_weights_that_it_had(demo: Any, old: Path) -> None:
    saved = load_file(old / "stages/2-distill/checkpoints/step-00000005/weights.safetensors")
    results = json.loads((old / "report" / "results.json").read_text())
    demo.unfinish(old, stage=2)
    shutil.rmtree(old / "stages/2-distill/checkpoints/step-00000005")
    first_stage = (old / "stages/1-align/metrics.jsonl").read_bytes()

    result = linearize.run("recipe.toml")

    assert (old / "stages/1-align/metrics.jsonl").read_bytes() == first_stage  # the finished stage was not taken again
    lines = [json.loads(line) for line in (old / "stages/2-distill/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert_close(load_file(old / "stages/2-distill/checkpoints/step-00000005/weights.safetensors"), saved)
    assert {task: scores["questions"] for task, scores in result.results["tasks"].items()} == {
        task: scores["questions"] for task, scores in results["tasks"].items()
    }
    assert result.results["kl"] == pytest.approx(results["kl"], rel=1e-3)


def test_the_report_of_an_old_run_can_be_made_again(old: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(old)])
    assert done.exit_code == 0, done.output
    assert (old / "report" / "index.html").stat().st_size > 50_000
