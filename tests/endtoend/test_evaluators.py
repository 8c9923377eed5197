"""A stranger's evaluator in a whole run: named in a recipe, shown wherever a person looks, told when it fails."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.errors import PluginFault
from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import EvaluatorSpec
from linearize.protocols import EvaluatedStudent, Section

pytestmark = pytest.mark.slow


class Options(Config):
    longer_than: int = Field(default=0, description="characters")


class LongAnswers:
    """Counts the student's answers that are longer than so many characters."""

    fails = False

    def __init__(self, config: Options) -> None:
        self.config = config

    def evaluate(self, student: EvaluatedStudent) -> dict[str, Any]:
        if self.fails:
            raise KeyError("no longer there")
        long = {
            task.name: sum(len(answer.text) > self.config.longer_than for answer in task.student)
            for task in student.tasks
        }  # fmt: skip
        return {"long": long}

    def section(self, results: Any) -> Section:
        return Section(
            title="How long <answers> are",
            head=("task", "long answers"),
            rows=[(task, f"{count} [bold] of 2") for task, count in results["long"].items()],
            caption="answers of the student",
            note="Shown by a stranger.",
            warnings=["nobody knows what a long answer is"],
        )


class Stranger:
    @hookimpl
    def linearize_register(self, register: Register) -> None:
        register(EvaluatorSpec(
            name="long_answers", build="code_of_a_stranger:LongAnswers", config="code_of_a_stranger:Options",
            source="https://example.org"))  # fmt: skip


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = types.ModuleType("code_of_a_stranger")
    vars(module).update(LongAnswers=LongAnswers, Options=Options)
    monkeypatch.setitem(sys.modules, "code_of_a_stranger", module)
    plugins = Plugins.discover()
    plugins.add(Stranger(), name="stranger")
    return {"plugins": plugins}


@pytest.fixture
def overrides(demo: Any) -> dict[str, Any]:
    """No training; the same evaluator twice."""
    return {
        **{f"stages.{name}.steps": 0 for name in demo.stages},
        "evaluate.dial_questions": 0,
        "evaluate.evaluators": [{"type": "long_answers"}, {"type": "long_answers", "longer_than": 1000}],
    }


def test_a_strangers_evaluator_stands_in_the_results_the_page_the_markdown_and_the_terminal(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], options: dict[str, Any]
) -> None:
    monkeypatch.setattr(LongAnswers, "fails", True)
    with pytest.raises(PluginFault, match="evaluator 'long_answers' of plug-in 'stranger' failed: KeyError"):
        demo.run(monkeypatch, tmp_path, overrides, **options)
    monkeypatch.setattr(LongAnswers, "fails", False)
    run, told = demo.run(monkeypatch, tmp_path, overrides, **options)

    results = json.loads((run / "report" / "results.json").read_text())
    first, second = (results["evaluators"][f"long_answers-{number}"]["results"]["long"] for number in (1, 2))
    assert first.keys() == second.keys() == results["tasks"].keys()
    assert set(second.values()) == {0}
    assert results["branches"] is None
    assert told.warnings.count("nobody knows what a long answer is") == 2

    # Whoever reads the report needs no plug-in of the stranger's.
    shown = CliRunner().invoke(app, ["report", str(run)])
    assert shown.exit_code == 0, shown.output
    page, text = (
        (run / "report" / "index.html").read_text(), (run / "report" / "report.md").read_text()
    )  # fmt: skip
    assert "<h2>How long &lt;answers&gt; are</h2>" in page
    assert "<td>0 [bold] of 2</td>" in page
    assert "| 0 [bold] of 2 |" in text
    for written in (page, text):
        assert "Shown by a stranger." in written
        assert "nobody knows what a long answer is." in written
    assert shown.output.count("How long <answers> are") == 2
    assert "0 [bold] of 2" in shown.output
