"""What is wrong with a plug-in's code is told while a recipe is checked, with the plug-in's name."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from linearize.errors import DataError, Problem, RecipeError
from linearize.plan.check import check_draft
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import (
    BenchmarkSpec,
    DataSpec,
    EvaluatorSpec,
    LayoutSpec,
    MixerSpec,
    ObjectiveSpec,
    ScheduleSpec,
    SeederSpec,
    Spec,
    TeacherSpec,
)
from linearize.protocols.conversation import Conversation, Turn
from linearize.recipe.load import draft_recipe

QUESTION = Conversation((Turn("which?", "this"),))
KINDS: dict[str, type[Spec]] = {
    "teacher": TeacherSpec, "student.mixer": MixerSpec, "student.layout": LayoutSpec, "student.seeder": SeederSpec,
    "data": DataSpec, "schedule": ScheduleSpec, "stages.align.objective": ObjectiveSpec,
    "evaluate.benchmarks.0": BenchmarkSpec, "evaluate.evaluators.0": EvaluatorSpec,
}  # fmt: skip


class Data:
    size = None

    def __init__(self, config: object) -> None: ...
    def __getitem__(self, index: int) -> Conversation:
        return QUESTION


class Benchmark:
    tasks = ("one",)
    dials: ClassVar[Any] = {}

    def __init__(self, config: object) -> None: ...
    def questions(self, task: str, difficulty: int | None = None) -> list[Conversation]:
        return [QUESTION]

    def is_correct(self, question: Conversation, answer: str) -> bool:
        return True


class Teacher:
    """All of a teacher but its sites."""

    def __init__(self, config: object) -> None: ...
    def sites(self) -> list[Any]:
        return []

    load = processor = weights = batch = num_tokens = decode = sites


@pytest.fixture
def check(tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks the recipe with a stranger's component at a path; gives the problems."""
    module = types.ModuleType("stranger_code")
    monkeypatch.setitem(sys.modules, "stranger_code", module)

    def run(path: str, build: Any) -> list[Problem]:
        class Stranger:
            @hookimpl
            def linearize_register(self, register: Register) -> None:
                register(KINDS[path](name="odd", build="stranger_code:build", source="https://example.org"))

        vars(module)["build"] = build
        plugins = Plugins.discover()
        plugins.add(Stranger(), name="stranger")
        if path.startswith("stages"):
            tables["stages"][0]["objective"] = {"type": "odd"}
        elif path.startswith("evaluate"):
            tables["evaluate"] = {path.split(".")[1]: [{"type": "odd"}], "dial_questions": 1}
        else:
            parent, _, key = path.rpartition(".")
            (tables[parent] if parent else tables)[key] = {"type": "odd"}
        try:
            check_draft(draft_recipe(tables, [], plugins))
        except RecipeError as error:
            return list(error.problems)
        return []

    return run


def the_fault(problems: list[Problem], path: str) -> Problem:
    """The only problem, which is a fault of the stranger's component."""
    (problem,) = problems
    assert (problem.path, problem.code) == (path, "plugin_fault")
    assert f"{KINDS[path].kind} 'odd' of plug-in 'stranger' failed" in problem.text
    return problem


@pytest.mark.parametrize(("path", "build"), [("data", Data), ("evaluate.benchmarks.0", Benchmark)])
def test_components_that_follow_their_protocols_have_no_fault(check: Any, path: str, build: Any) -> None:
    assert check(path, build) == []


@pytest.mark.parametrize("path", KINDS)
def test_a_component_whose_construction_raises_is_a_fault_told_with_type_text_and_place(check: Any, path: str) -> None:
    def build(*args: object) -> None:
        raise FileNotFoundError("no table.json")

    problem = the_fault(check(path, build), path)
    assert "FileNotFoundError: no table.json, in core/test_faults.py, line " in problem.text


@pytest.mark.parametrize("path", KINDS)
def test_a_component_without_the_members_of_its_protocol_is_a_fault(check: Any, path: str) -> None:
    problem = the_fault(check(path, lambda *_: object()), path)
    assert "its object lacks `" in problem.text


def test_a_member_that_has_to_be_a_method_and_cannot_be_called_is_lacking(check: Any) -> None:
    class Listed(Benchmark):
        questions = ("what is red?",)  # type: ignore[assignment]

    problem = the_fault(check("evaluate.benchmarks.0", Listed), "evaluate.benchmarks.0")
    assert "its Listed lacks `questions`;" in problem.text


@pytest.mark.parametrize("error", [ValueError("too odd"), DataError("too odd")])
def test_what_a_component_refuses_is_a_problem_of_the_recipe_and_no_fault(check: Any, error: Exception) -> None:
    def build(config: object) -> None:
        raise error

    (problem,) = check("data", build)
    assert (problem.path, problem.text) == ("data", "too odd")
    assert problem.code in ("value_error", "data")


def test_bytes_that_are_no_text_are_a_fault_though_their_error_is_a_value_error(check: Any) -> None:
    problem = the_fault(check("data", lambda config: b"\xff".decode()), "data")
    assert "UnicodeDecodeError" in problem.text


def test_an_option_that_an_error_names_is_where_the_problem_is(check: Any) -> None:
    def build(config: object) -> None:
        raise DataError("there is none", option="path", found="x")

    (problem,) = check("data", build)
    assert (problem.path, problem.found, problem.text) == ("data.path", "x", "there is none")


def test_an_objective_that_a_function_builds_is_read_from_what_it_returns(check: Any) -> None:
    objective = types.SimpleNamespace(is_layerwise=True, weight=len, backward=len)
    assert check("stages.align.objective", lambda config: objective) == []


@pytest.mark.parametrize(
    ("member", "value", "said"),
    [
        ("questions", lambda self, task, difficulty=None: [][0], "IndexError"),
        ("questions", lambda self, task, difficulty=None: ["which?"], "a str"),
        ("dials", {"one": [1]}, ""),
    ],
)
def test_a_benchmark_is_asked_once_for_each_task_and_dial(check: Any, member: str, value: Any, said: str) -> None:
    class Odd(Benchmark):
        def __init__(self, config: object) -> None:
            setattr(type(self), member, value)

        def questions(self, task: str, difficulty: int | None = None) -> list[Conversation]:
            return [QUESTION] if difficulty is None else [][difficulty]

    assert said in the_fault(check("evaluate.benchmarks.0", Odd), "evaluate.benchmarks.0").text


@pytest.mark.parametrize(("size", "code"), [("many", "plugin_fault"), (0, "value_error")])
def test_a_source_of_no_size_is_told(check: Any, size: Any, code: str) -> None:
    class Odd(Data):
        def __init__(self, config: object) -> None:
            self.size = size

    (problem,) = check("data", Odd)
    assert (problem.path, problem.code) == ("data", code)


@pytest.mark.parametrize("path", ["data", "evaluate.benchmarks.0"])
def test_images_for_a_teacher_of_texts_are_refused(path: str, tables: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32, **sizes}))
    tables["teacher"] = {"type": "transformers", "checkpoint": str(tmp_path)}
    if path != "data":
        (tmp_path / "texts.json").write_text(
            '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]'
        )
        tables["data"] = {"type": "llava_json", "path": str(tmp_path / "texts.json")}
        tables["evaluate"] = {"benchmarks": [{"type": "glance"}]}
    with pytest.raises(RecipeError) as caught:
        check_draft(draft_recipe(tables, [], Plugins.discover()))
    assert [(problem.path, problem.code) for problem in caught.value.problems] == [(path, "data")]


def test_a_teacher_whose_sites_cannot_be_listed_is_a_fault(check: Any) -> None:
    class Odd(Teacher):
        def sites(self) -> list[Any]:
            raise KeyError("num_layers")

    assert "KeyError: 'num_layers'" in the_fault(check("teacher", Odd), "teacher").text


def test_the_command_line_shows_a_fault_without_a_traceback_unless_it_is_asked_for(
    tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from linearize.cli.app import app

    result = CliRunner().invoke(app, ["check", str(tmp_path / "none.toml")])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    monkeypatch.setenv("LINEARIZE_TRACEBACK", "1")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "none.toml")])
    assert isinstance(result.exception, RecipeError)
