"""Recipes: files over files, overrides, and every problem at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from linearize.errors import Problem, RecipeError
from linearize.files.names import fingerprint
from linearize.plan.check import check_recipe
from linearize.plugin.discovery import Plugins
from linearize.plugin.tables import merge
from linearize.recipe.load import load_recipe
from linearize.recipe.toml import apply_override, read_tables, to_inline

Write = Callable[[str, str], Path]


def problems(tables: Any, plugins: Plugins, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tables, overrides, plugins)
    return list(caught.value.problems)


def problem_of(function: Callable[[], object]) -> Problem:
    with pytest.raises(RecipeError) as caught:
        function()
    (problem,) = caught.value.problems
    return problem


def test_a_recipe_without_problems_loads_with_typed_options(tables: dict[str, Any], plugins: Plugins) -> None:
    loaded = load_recipe(tables, [], plugins)
    assert loaded.recipe.stages[1].steps == 3
    assert loaded.components["student.mixer"].config.conv_width == 2  # type: ignore[attr-defined]
    assert {"student.layout", "student.seeder", "stages.0.objective"} <= set(loaded.components)


def test_the_resolved_recipe_reads_back_as_itself(tables: dict[str, Any], plugins: Plugins) -> None:
    first = load_recipe(tables, ["student.layout.type=every", "student.layout.keep=4"], plugins)
    again = load_recipe(tomllib.loads(first.to_toml()), [], plugins)
    assert again.tables() == first.tables()
    assert fingerprint(again.tables()) == fingerprint(first.tables())


def test_the_resolved_recipe_writes_defaults_out(tables: dict[str, Any], plugins: Plugins) -> None:
    resolved = load_recipe(tables, [], plugins).tables()
    assert resolved["student"]["layout"] == {"type": "all"}
    assert resolved["stages"][0]["batch_size"] == 32
    assert resolved["stages"][0]["objective"]["space"] == "heads"


def test_a_component_without_a_type_changes_the_default_one(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["student"]["seeder"] = {"stile": "scratch"}
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code, problem.found) == ("student.seeder.stile", "unknown_key", "scratch")


def test_a_misspelt_type_is_recognised(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["student"]["mixer"]["typ"] = "gla"
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code) == ("student.mixer.typ", "unknown_key")
    assert "Did you mean 'type'? Known: type, " in problem.text


def test_problems_of_core_and_plugins_come_all_at_once_by_path(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["stages"][0]["steps"] = -1
    tables["stages"][1]["stpes"] = 5
    tables["student"]["mixer"]["conv_widht"] = 4
    tables["student"]["mixer"]["chunk_size"] = "many"
    tables["teacher"]["type"] = "hovel"
    tables["data"]["tasks"] = {"nothing": 1.0}
    found = {problem.path: (problem.code, problem.found) for problem in problems(tables, plugins)}
    assert found == {
        "stages.align.steps": ("greater_than_equal", -1),
        "stages.distill.stpes": ("unknown_key", 5),
        "student.mixer.conv_widht": ("unknown_key", 4),
        "student.mixer.chunk_size": ("int_parsing", "many"),
        "teacher.type": ("unknown_name", "hovel"),
        "data": ("value_error", {"tasks": {"nothing": 1.0}}),
    }


def test_a_problem_reads_as_its_path_what_was_expected_what_was_found_and_what_to_do(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    tables["stages"][1]["stpes"] = 5
    tables["teacher"]["type"] = "hovel"
    wrong, unknown = map(str, problems(tables, plugins, "run.seed=-1")[1:])
    assert wrong.startswith("stages.distill.stpes: unknown key; got 5. Did you mean 'steps'? Known: name, objective,")
    assert unknown.startswith("teacher.type: unknown teacher 'hovel'. Did you mean 'hovle'? Installed: ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("gla", "expected a table such as { type = \"gla\" }; got 'gla'"),
        (["gla"], "expected a table; got ['gla']"),
    ],
)
def test_a_value_in_the_place_of_a_table_is_answered_with_the_table(
    tables: dict[str, Any], plugins: Plugins, value: Any, text: str
) -> None:
    tables["student"]["mixer"] = value
    assert [(one.path, one.text) for one in problems(tables, plugins)] == [("student.mixer", text)]


def test_a_text_in_the_place_of_a_table_without_a_type_is_answered_plainly(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    tables["run"] = "demo"
    assert [str(one) for one in problems(tables, plugins)] == ["run: expected a table; got 'demo'"]


def test_missing_tables_are_each_named(plugins: Plugins) -> None:
    found = problems({"run": {}}, plugins)
    assert {problem.path for problem in found} == {"data", "run.name", "stages", "student", "teacher"}
    assert {problem.code for problem in found} == {"missing"}


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", ""])
def test_a_run_name_that_would_leave_the_runs_folder_is_refused(
    tables: dict[str, Any], plugins: Plugins, name: str
) -> None:
    tables["run"]["name"] = name
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code, problem.found) == ("run.name", "string_pattern_mismatch", name)


def test_two_stages_of_one_name_are_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["stages"][1]["name"] = "align"
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code) == ("stages", "value_error")
    assert "align" in problem.text


def test_warmup_and_decay_longer_than_the_stage_are_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["stages"][0]["lr_schedule"] = {"warmup": 0.7, "decay": 0.6}
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.found) == ("stages.align.lr_schedule", {"warmup": 0.7, "decay": 0.6})


@pytest.mark.parametrize(("questions", "evaluators"), [(7, [{"type": "branches", "questions": 7}]), (0, [])])
def test_branch_questions_of_older_recipes_say_which_evaluators_are_asked(
    tables: dict[str, Any], plugins: Plugins, questions: int, evaluators: list[Any]
) -> None:
    loaded = load_recipe(tables, [f"evaluate.branch_questions={questions}"], plugins)
    assert loaded.tables()["evaluate"]["evaluators"] == evaluators
    assert "branch_questions" not in loaded.tables()["evaluate"]
    older = {**tables, "evaluate": {"branch_questions": 25}}
    assert load_recipe(older, [], plugins).tables() == load_recipe(tables, [], plugins).tables()


def test_branch_questions_that_cannot_be_honoured_are_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    for given, code in ({"branch_questions": -1}, "int_type"), ({"branch_questions": 5, "evaluators": []}, "twice"):
        (problem,) = problems({**tables, "evaluate": given}, plugins)
        assert (problem.path, problem.code) == ("evaluate.branch_questions", code)


def test_a_problem_of_an_evaluator_is_told_by_its_path(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["evaluate"] = {"evaluators": [{"type": "branches", "question": 3}, {"type": "branch"}]}
    assert {(problem.path, problem.code) for problem in problems(tables, plugins)} == {
        ("evaluate.evaluators.0.question", "unknown_key"), ("evaluate.evaluators.1.type", "unknown_name")
    }  # fmt: skip


def test_a_plugin_that_did_not_load_is_named_where_its_component_is_missing(tables: dict[str, Any]) -> None:
    class Broken:
        def load(self) -> Any:
            raise ImportError("no sentencepiece")

    plugins = Plugins()
    plugins.load("hovle", Broken(), "somewhere", "1.0")
    assert "Plug-in 'hovle' did not load: ImportError: no sentencepiece." in "\n".join(
        map(str, problems(tables, plugins))
    )


def test_extends_lays_a_file_over_another_stage_by_stage(write: Write) -> None:
    write(
        "base.toml",
        '[run]\nname = "a"\nseed = 1\n[[stages]]\nname = "x"\nsteps = 1\nlr = 1.0\n[[stages]]\nname = "y"\n',
    )
    child = write(
        "child.toml",
        'extends = "base.toml"\n[run]\nseed = 2\n[[stages]]\nname = "z"\n[[stages]]\nname = "x"\nsteps = 9\n',
    )
    assert read_tables(child) == {
        "run": {"name": "a", "seed": 2},
        "stages": [{"name": "x", "steps": 9, "lr": 1.0}, {"name": "y"}, {"name": "z"}],
    }


def test_files_that_extend_each_other_in_a_circle_are_refused(write: Write) -> None:
    write("a.toml", 'extends = "b.toml"')
    path = write("b.toml", 'extends = "a.toml"').with_name("a.toml")
    problem = problem_of(lambda: read_tables(path))
    assert (problem.path, problem.code) == ("extends", "circle")
    assert "a.toml -> b.toml -> a.toml" in problem.text


def test_a_missing_file_is_named_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("recipe.toml", "")
    near, none = (
        problem_of(lambda path=path: read_tables(path / "recipes.toml")) for path in (tmp_path, tmp_path / "no")
    )
    assert (near.code, none.code) == ("no_file", "no_file")
    assert f"Did you mean '{tmp_path / 'recipe.toml'}'?" in near.text
    assert "Did you mean" not in none.text


def test_a_missing_file_of_a_folder_whose_name_is_mistyped_is_suggested(write: Write, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    write("examples/recipe.toml", "")
    text = problem_of(lambda: read_tables(tmp_path / "exmples" / "recipe.toml")).text
    assert f"Did you mean '{tmp_path / 'examples' / 'recipe.toml'}'?" in text


def test_a_name_that_shares_its_ending_alone_is_not_suggested(write: Write, tmp_path: Path) -> None:
    write("pyproject.toml", "")
    assert "Did you mean" not in problem_of(lambda: read_tables(tmp_path / "nope.toml")).text


def test_a_file_that_is_no_toml_or_no_text_is_refused(write: Write, tmp_path: Path) -> None:
    write("bad.toml", "[run]\nname tiny")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert problem_of(lambda: read_tables(tmp_path / "bad.toml")).code == "toml"
    assert problem_of(lambda: read_tables(tmp_path / "binary.toml")).code == "unreadable"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[run]\nnumbers = [1, "]", # ]\n[data]\ntype = "x"\n',
            ' at line 3, column 2: `[data]`. The [ of line 2 is not closed: `numbers = [1, "]", # ]`',
        ),
        ("a = [1]\nb = [1, [2],\n\n", " at the end of the file, line 3. The [ of line 2 is not closed: `b = [1, [2],`"),
        ("a = 1\nb = { c = 1", " at the end of the file, line 2: `b = { c = 1`"),
        ('a = """x\n[b]\n', ' at the end of the file, line 2: `[b]`. The """ of line 1 is not closed: `a = """x`'),
        ("[run]\nname tiny", " at line 2, column 6: `name tiny`"),
    ],
)
def test_what_was_left_open_in_a_file_is_told_with_its_line(write: Write, text: str, told: str) -> None:
    path = write("bad.toml", text)
    problem = problem_of(lambda: read_tables(path))
    assert problem.code == "toml"
    assert problem.text.endswith(told)


def test_merging_replaces_a_table_whose_type_changes() -> None:
    base = {"mixer": {"type": "mamba2", "conv_width": 4}, "keep": 1}
    assert merge(base, {"mixer": {"type": "gla"}}) == {"mixer": {"type": "gla"}, "keep": 1}
    assert merge(base, {"mixer": {"conv_width": 2}}) == {"mixer": {"type": "mamba2", "conv_width": 2}, "keep": 1}


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("run.seed=3", lambda t: t["run"]["seed"] == 3),
        ("run.name=other", lambda t: t["run"]["name"] == "other"),
        ("stages.1.steps=9", lambda t: t["stages"][1]["steps"] == 9),
        ("stages.distill.lr=1e-2", lambda t: t["stages"][1]["lr"] == 0.01),
        ('stages.align.train=["qkv"]', lambda t: t["stages"][0]["train"] == ["qkv"]),
        ("student.layout={ type = 'every', keep = 4 }", lambda t: t["student"]["layout"]["keep"] == 4),
        ("evaluate.batch_size = 8", lambda t: t["evaluate"]["batch_size"] == 8),
        ("student.mixer.type=gla", lambda t: t["student"]["mixer"] == {"type": "gla"}),
    ],
)
def test_an_override_sets_a_typed_value(
    tables: dict[str, Any], override: str, read: Callable[[dict[str, Any]], bool]
) -> None:
    tables["student"]["mixer"]["conv_width"] = 4
    apply_override(tables, override)
    assert read(tables)


@pytest.mark.parametrize(
    ("override", "path", "code", "found"),
    [
        ("run.seed", "", "override", None),
        ("=3", "", "override", None),
        ("stages.5.steps=1", "stages.5", "unknown_entry", "5"),
        ("run.name.first=1", "run.name", "no_table", "tiny"),
    ],
)
def test_an_override_that_does_not_apply_says_why(
    tables: dict[str, Any], override: str, path: str, code: str, found: object
) -> None:
    problem = problem_of(lambda: apply_override(tables, override))
    assert (problem.path, problem.code, problem.found) == (path, code, found)


def test_overrides_that_do_not_apply_come_with_the_other_problems(tables: dict[str, Any], plugins: Plugins) -> None:
    found = problems(tables, plugins, "stages.distil.steps=5", "run.seeed=3", "run.seed")
    assert [(problem.path, problem.code) for problem in found] == [
        ("stages.distil", "unknown_entry"), ("", "override"), ("run.seeed", "unknown_key"),
    ]  # fmt: skip
    assert "Did you mean 'distill'? There are: align, " in found[0].text
    assert "--set run.seed" in found[1].text


def test_a_schedule_makes_stages_that_the_recipe_overlays_and_overrides_reach(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    tables["schedule"] = {"type": "mmmamba"}
    tables["stages"] = [{"name": "distill", "steps": 7}]
    recipe = load_recipe(tables, ["stages.align-new.steps=5"], plugins).recipe
    steps = {stage.name: stage.steps for stage in recipe.stages}
    assert (steps["align-new"], steps["distill"], len(steps)) == (5, 7, 3)


def test_a_schedule_can_be_replaced_by_an_override(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["schedule"] = {"type": "mmmamba"}
    del tables["stages"]
    for override in ('schedule={ type = "mmmamba", variant = "paper" }', "schedule.variant=paper"):
        changed = load_recipe(tables, [override], plugins)
        assert changed.components["schedule"].table() == {"type": "mmmamba", "variant": "paper"}


def test_a_schedule_that_is_unknown_is_the_only_problem_about_stages(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["schedule"] = {"type": "mmmambo"}
    del tables["stages"]
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code, problem.found) == ("schedule.type", "unknown_name", "mmmambo")


@pytest.mark.parametrize(
    "value", [3, 0.001, 1e-8, True, 'a "quoted" \\ text\n', "日本", [1, [2.5]], {"type": "x", "odd key": {"a": []}}, {}]
)
def test_inline_toml_reads_back_as_the_same_value(value: Any) -> None:
    assert tomllib.loads(f"value = {to_inline(value)}")["value"] == value


@pytest.mark.parametrize("value", [None, float("nan"), object()])
def test_inline_toml_refuses_what_a_recipe_cannot_hold(value: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a text, .* as a recipe value"):
        to_inline(value)


def test_paths_start_at_the_current_directory_and_one_that_lies_beside_the_recipe_is_pointed_out(
    tables: dict[str, Any], plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]'
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "texts.json").write_text(record)
    tables["data"] = {"type": "llava_json", "path": "texts.json"}
    (tmp_path / "sub" / "recipe.toml").write_text(tomli_w.dumps(tables))
    monkeypatch.chdir(tmp_path)
    problem = problem_of(lambda: check_recipe("sub/recipe.toml", (), plugins))
    assert (problem.path, problem.found) == ("data.path", "texts.json")
    assert "There is 'sub/texts.json'; paths in a recipe start at the current directory" in problem.text
    (tmp_path / "texts.json").write_text(record)
    assert check_recipe("sub/recipe.toml", (), plugins)
