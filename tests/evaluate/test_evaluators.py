"""Evaluators are asked once, see what the models answered, and a fault of one is told with its plug-in's name."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaForCausalLM

from linearize.errors import PluginFault
from linearize.evaluate.runner import evaluate
from linearize.plugin.components import ResolvedComponent
from linearize.plugin.specs import EvaluatorSpec, NoOptions
from linearize.protocols import Section

Ask = Callable[..., dict[str, Any]]


class Lengths:
    """Tells how long the student's answers are."""

    def __init__(self, config: object) -> None:
        self.asked = 0

    def evaluate(self, student: Any) -> Any:
        self.asked += 1
        lengths = {task.name: [len(answer.text) for answer in task.student] for task in student.tasks}
        student.progress(1, 1)
        return {"longest": {name: max(found) for name, found in lengths.items()}, 1: None}

    def section(self, results: Any) -> Any:
        return Section("Lengths", ("task", "longest"), [(name, str(n)) for name, n in results["longest"].items()])


@pytest.fixture
def ask(
    adapter: Any, spelling: Any, tiny_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Ask:
    """Evaluates a model with a stranger's evaluator."""
    module = types.ModuleType("stranger_code")
    monkeypatch.setitem(sys.modules, "stranger_code", module)
    model = tiny_llama.eval()
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1)

    def run(evaluator: Any, questions: int = 2, **options: Any) -> dict[str, Any]:
        vars(module)["build"] = lambda config: evaluator
        spec = EvaluatorSpec(name="lengths", build="stranger_code:build", source="https://example.org")
        summary = evaluate(
            model, adapter, {"spelling": spelling(questions=questions, dialled=False)}, batch_size=4, max_new_tokens=4,
            folder=tmp_path, evaluators={"lengths": ResolvedComponent(spec, NoOptions(), "stranger")}, **options,
        )  # fmt: skip
        return dict(summary["evaluators"])

    return run


def test_results_are_what_a_file_gives_back_and_are_not_asked_for_twice(ask: Ask) -> None:
    evaluator, calls = Lengths(None), []
    found = ask(evaluator, progress=lambda *call: calls.append(call))
    assert set(found["lengths"]["results"]) == {"longest", "1"}
    assert found["lengths"]["section"]["rows"][0] == ["echo", str(found["lengths"]["results"]["longest"]["echo"])]
    assert calls[-1] == ("lengths", 1, 1)
    assert ask(evaluator) == found
    assert evaluator.asked == 1
    ask(evaluator, questions=3)
    ask(evaluator, questions=3, key="other weights")
    assert evaluator.asked == 3


def test_a_part_that_is_stored_is_made_once_though_the_rest_fails(ask: Ask) -> None:
    made = []

    def make() -> tuple[int, ...]:
        made.append(1)
        return 1, 2

    class Stops(Lengths):
        def evaluate(self, student: Any) -> Any:
            part = student.once("part.1", make)
            self.asked += 1
            if self.asked == 1:
                raise KeyboardInterrupt
            return {"longest": {}, "part": part}

    evaluator = Stops(None)
    with pytest.raises(KeyboardInterrupt):
        ask(evaluator)
    assert ask(evaluator)["lengths"]["results"]["part"] == [1, 2]
    assert made == [1]


def test_an_evaluator_that_finds_nothing_or_shows_nothing_has_no_part_in_the_report(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lengths, "section", lambda *_: None)
    assert ask(Lengths(None))["lengths"]["section"] is None
    monkeypatch.setattr(Lengths, "evaluate", lambda *_: None)
    assert ask(Lengths(None), key="other weights") == {}


@pytest.mark.parametrize(
    ("member", "give", "said"),
    [
        ("evaluate", lambda *_: {}["none"], "KeyError: 'none'"),
        ("evaluate", lambda *_: int("one"), "ValueError: invalid literal"),
        ("evaluate", lambda *_: [1], r"has to return a mapping, or None; got \[1\]"),
        ("evaluate", lambda *_: {"a": float("nan")}, "have to be JSON values"),
        ("evaluate", lambda *_: {"a": object()}, "have to be JSON values"),
        ("section", lambda *_: "<b>fine</b>", "has to return a Section"),
        ("section", lambda *_: Section("a", ("b",), [("c", "d")]), "row 0 of 'a' has 2 cells; expected 1"),
        ("section", lambda *_: Section("a", ("b",), [[1]]), "expected a text in section 'a', got 1"),  # type: ignore[list-item]
        ("section", lambda *_: Section("a", warnings="b"), "expected a list of texts in section 'a'"),
    ],
)
def test_a_fault_is_told_with_the_names_of_evaluator_and_plugin(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, member: str, give: Any, said: str
) -> None:
    monkeypatch.setattr(Lengths, member, give)
    with pytest.raises(PluginFault, match=f"^evaluator 'lengths' of plug-in 'stranger' failed: .*{said}"):
        ask(Lengths(None))


def test_the_evaluator_of_the_plugin_page_works(ask: Ask) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "def evaluate" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    found = ask(names["Unfinished"](None))["lengths"]
    assert found["results"] == {"echo": 2, "look": 2}
    assert found["section"]["rows"] == [["echo", "2"], ["look", "2"]]
