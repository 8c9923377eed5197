"""The quick start says what is so: its commands are commands, its recipes check, its snippet answers."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from checkout import DOCS, EXAMPLES, ROOT, environment, python
from PIL import Image

import linearize
from linearize import api
from linearize.cli.app import app

pytestmark = pytest.mark.slow

PAGE = (DOCS / "quickstart.md").read_text(encoding="utf-8")
OTHER = (DOCS / "how_it_works.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in SHELL if line.startswith("linearize ")]
COMMANDS += [text for text in re.findall(r"`(linearize [^`]*)`", PAGE) if " data export" not in text]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def _parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command's name and its arguments as typer would pass them; nothing is run."""
    command: Any = typer.main.get_command(app)
    name, arguments, parent = "linearize", shlex.split(line)[1:], None
    while hasattr(command, "commands"):
        parent = command.make_context(name, list(arguments), parent=parent)
        name, command, arguments = command.resolve_command(parent, arguments)
    return name, command.make_context(name, list(arguments), parent=parent).params


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses_and_its_recipe_has_no_problem(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, params = _parsed(line)
    monkeypatch.chdir(ROOT)
    if name in ("run", "check", "plan") and "llava_json" not in line:
        api.check(params["recipe"], params["overrides"] or ())


def test_every_make_target_is_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {line.split()[1] for line in SHELL if line.startswith("make ")} == {"demo", "test"} <= set(targets)


def test_the_export_holds_all_conversations_of_the_run() -> None:
    [line] = [line for line in COMMANDS if " data export" in line]
    stages = api.check(EXAMPLES / "mmmamba_hovle.toml").recipe.recipe.stages
    assert _parsed(line)[1]["count"] == sum(stage.steps * stage.batch_size for stage in stages)


def test_the_plan_shown_is_the_demos() -> None:
    rows = re.findall(r"^ \d ([a-z-]+) +(\w+) +(.*?)  +([\d,]+) +(\d+) +(\d+) +(\d+) ", PAGE, re.MULTILINE)
    plan = api.check(EXAMPLES / "mmmamba_hovle.toml").plan
    assert rows == [
        (
            stage.stage.name, stage.objective, " + ".join(stage.stage.train), f"{stage.num_trained:,}",
            str(len(stage.sites)), str(stage.stage.steps), str(stage.stage.batch_size),
        )
        for stage in plan.stages
    ]  # fmt: skip


def test_the_snippets_run_on_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = {f"stages.{name}.{key}": 1 for name in ("align-new", "align-mixer", "distill") for key in ("steps",)}
    tiny |= {f"stages.{name}.batch_size": 2 for name in ("align-new", "align-mixer", "distill")}
    result = linearize.run(EXAMPLES / "mmmamba_hovle.toml", {**tiny, "evaluate.benchmarks": []})
    assert result.folder == Path("runs/mmmamba-hovle")
    picture = tmp_path / "pictures" / "images" / "00000000-0.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (112, 112), "white").save(picture)
    use, train = PYTHON
    done = python("-c", use, cwd=tmp_path, env=environment(HF_HUB_OFFLINE="1"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # one answer, whatever a student of one step makes of a white picture
    compile(train, "quickstart", "exec")


def test_the_first_exported_conversation_has_the_picture_of_the_snippet() -> None:
    source = api.check(EXAMPLES / "mmmamba_hovle.toml").recipe.components["data"].build()
    assert len(source[0].images) == 1
    [question] = re.findall(r'"type": "text", "text": "([^"]+)"', PYTHON[0])
    assert any(question in turn.question for turn in source[0].turns)


@pytest.mark.parametrize(("page", "text"), [("quickstart.md", PAGE), ("how_it_works.md", OTHER)])
def test_links_lead_somewhere(page: str, text: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        linked = (DOCS / file).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", linked, re.M)
        }
        assert not anchor or anchor in headings, (page, target)


def test_toml_in_the_pages_is_toml() -> None:
    for block in re.findall(r"```toml\n(.*?)```", PAGE + OTHER, re.DOTALL):
        tomllib.loads(block)
