"""What is wrong with a chat is told before a weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkout import DOCS
from run_folders import bare_run, bare_student
from talks import Talk
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.errors import LinearizeError
from linearize.inference.session import prepare
from linearize.inference.targets import StudentTarget
from linearize.plugin.discovery import Plugins

PAGE = DOCS / "chat.md"


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: StudentTarget, **options: Any) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(StudentTarget, "load", load)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"images": ["none.png"]}, "image not found: 'none.png'"),
        ({"device": "gpu"}, "torch knows no device 'gpu'; expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here: "),
        ({"device": "hpu"}, "device 'hpu' cannot be used here: "),
        ({"device": "meta"}, "device 'meta' cannot be used here: it holds no weights"),
    ],
)
def test_wrong_options_are_told(talk: Talk, options: dict[str, Any], told: str) -> None:
    with pytest.raises(LinearizeError) as caught:
        prepare(talk.run, plugins=Plugins.discover(), **options)
    assert told in str(caught.value)


def test_a_picture_that_is_none_is_told(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(LinearizeError, match=r"a\.png' is in no image format"):
        prepare(talk.run, images=[tmp_path / "a.png"], plugins=Plugins.discover())


def test_images_for_a_text_model_are_told(talk: Talk, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(talk.adapter), "reads_images", False, raising=False)
    with pytest.raises(LinearizeError, match="is a text model; leave them out"):
        prepare(talk.run, images=[picture], plugins=Plugins.discover())


def test_a_student_whose_teacher_is_gone_is_told(tmp_path: Path) -> None:
    student = bare_student(tmp_path / "student", {"type": "hovle", "checkpoint": str(tmp_path / "gone")})
    with pytest.raises(LinearizeError, match=r"made of teacher 'hovle'.* cannot be read: there is no folder '.*gone'"):
        prepare(student, plugins=Plugins.discover())


def test_a_published_checkpoint_is_told(tmp_path: Path) -> None:
    published = {name for spec in _formats() for name in spec.model_types}
    (tmp_path / "config.json").write_text(f'{{"model_type": "{sorted(published)[0]}"}}')
    with pytest.raises(LinearizeError, match="chat takes students that linearize saved"):
        prepare(tmp_path, plugins=Plugins.discover())


def _formats() -> Any:
    from linearize.plugin.discovery import Plugins
    from linearize.plugin.specs import FormatSpec

    return Plugins.discover().registry.all(FormatSpec)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["RUN"], 1, "has not finished"),
        (["RUN", "--max-tokens", "0"], 2, "--max-tokens"),
        (["RUN", "--temperature", "-1"], 2, "--temperature"),
        (["RUN", "--dtype", "int8"], 2, "--dtype"),
        ([], 2, "RUN_OR_STUDENT"),
    ],
)
def test_the_command_line_tells_it(tmp_path: Path, arguments: list[str], status: int, told: str) -> None:
    run = bare_run(tmp_path / "run", finished=False)
    result = CliRunner().invoke(app, ["chat", *(str(run) if part == "RUN" else part for part in arguments)])
    assert result.exit_code == status
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_the_page_names_every_option_and_command() -> None:
    import re

    from linearize.inference.chat import HELP

    page = PAGE.read_text(encoding="utf-8")
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["chat", "--help"]).stdout
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert options == {"--image", "--teacher", "--max-tokens", "--temperature", "--seed", "--dtype", "--device"}
    assert {name for name in options | set(re.findall(r"^/[a-z]+", HELP, re.MULTILINE)) if name not in page} == set()
