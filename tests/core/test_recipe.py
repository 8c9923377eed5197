"""Recipes: files over files, overrides, and every problem at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linearize.errors import RecipeError
from linearize.plugins import Plugins
from linearize.recipe.load import fingerprint, load_recipe
from linearize.recipe.toml import apply_override, merge, read_tables, to_inline

Write = Callable[[str, str], Path]


def problems(tables: Any, plugins: Plugins, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tables, overrides, plugins)
    return list(caught.value.problems)


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
    assert problem.startswith("student.seeder.stile: unknown key")


def test_a_misspelt_type_is_recognised(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["student"]["mixer"]["typ"] = "gla"
    (problem,) = problems(tables, plugins)
    assert problem.startswith("student.mixer.typ: unknown key; got 'gla'. Did you mean 'type'? Known: type, ")


def test_problems_of_core_and_plugins_come_all_at_once_by_path(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["stages"][0]["steps"] = 0
    tables["stages"][1]["stpes"] = 5
    tables["student"]["mixer"]["conv_widht"] = 4
    tables["student"]["mixer"]["chunk_size"] = "many"
    tables["teacher"]["type"] = "hovel"
    tables["data"]["tasks"] = {"nothing": 1.0}
    found = problems(tables, plugins)
    expected = (
        "stages.align.steps: Input should be greater than 0; got 0",
        "stages.distill.stpes: unknown key; got 5. Did you mean 'steps'? Known: name, objective,",
        "student.mixer.conv_widht: unknown key; got 4. Did you mean 'conv_width'? Known: ",
        "student.mixer.chunk_size: Input should be a valid integer, unable to parse string as an integer; got 'many'",
        "teacher.type: unknown teacher 'hovel'. Did you mean 'hovle'? Installed: ",
        "data: glance has no task 'nothing'; it has ",
    )
    assert [line for line in expected if not any(problem.startswith(line) for problem in found)] == []
    assert len(found) == len(expected)


def test_missing_tables_are_each_named(plugins: Plugins) -> None:
    found = problems({"run": {}}, plugins)
    assert sorted(found) == [f"{path}: is required" for path in ("data", "run.name", "stages", "student", "teacher")]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", ""])
def test_a_run_name_that_would_leave_the_runs_folder_is_refused(
    tables: dict[str, Any], plugins: Plugins, name: str
) -> None:
    tables["run"]["name"] = name
    assert problems(tables, plugins)[0].startswith("run.name: String should match pattern")


def test_two_stages_of_one_name_are_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["stages"][1]["name"] = "align"
    assert problems(tables, plugins)[0].startswith("stages: two stages have the same name: align")


def test_warmup_and_decay_longer_than_the_stage_are_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["stages"][0]["lr_schedule"] = {"warmup": 0.7, "decay": 0.6}
    assert problems(tables, plugins)[0].startswith(
        "stages.align.lr_schedule: warmup 0.7 and decay 0.6 add up to more than 1"
    )


def test_a_plugin_that_did_not_load_is_named_where_its_component_is_missing(tables: dict[str, Any]) -> None:
    class Broken:
        def load(self) -> Any:
            raise ImportError("no sentencepiece")

    plugins = Plugins()
    plugins.load("hovle", Broken(), "somewhere", "1.0")
    assert "Plug-in 'hovle' did not load: ImportError: no sentencepiece." in "\n".join(problems(tables, plugins))


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
    with pytest.raises(
        RecipeError, match=r"extends: files extend each other in a circle \(a.toml -> b.toml -> a.toml\)"
    ):
        read_tables(write("b.toml", 'extends = "a.toml"').with_name("a.toml"))


def test_a_missing_file_is_named_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("recipe.toml", "")
    with pytest.raises(RecipeError, match=r"there is no such file in .*\. Did you mean 'recipe.toml'\?"):
        read_tables(tmp_path / "recipes.toml")
    with pytest.raises(RecipeError, match="there is no such file in"):
        read_tables(tmp_path / "nowhere" / "recipes.toml")


def test_a_file_that_is_no_toml_or_no_text_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is not valid TOML: .*line 2"):
        read_tables(write("bad.toml", "[run]\nname tiny"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_tables(tmp_path / "binary.toml")


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
    with pytest.raises(RecipeError) as caught:
        read_tables(write("bad.toml", text))
    (problem,) = caught.value.problems
    assert problem.startswith("is not valid TOML: ")
    assert problem.endswith(told)


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
    ("override", "message"),
    [
        ("run.seed", r"--set run.seed has problems:\n  - --set run.seed: path.to.key=value was due"),
        ("stages.5.steps=1", r"stages.5: there is no entry '5'\. There are: align, distill"),
        ("run.name.first=1", r"run.name: holds 'tiny', which is no table to set a key in"),
        ("=3", r"path.to.key=value was due"),
    ],
)
def test_an_override_that_does_not_apply_says_why(tables: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        apply_override(tables, override)


def test_overrides_that_do_not_apply_come_with_the_other_problems(tables: dict[str, Any], plugins: Plugins) -> None:
    found = problems(tables, plugins, "stages.distil.steps=5", "run.seeed=3", "run.seed")
    assert found[0].startswith("stages.distil: there is no entry 'distil'. Did you mean 'distill'? There are: align, ")
    assert found[1].startswith("--set run.seed: path.to.key=value was due")
    assert found[2].startswith("run.seeed: unknown key")


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
    assert problem.startswith("schedule.type: unknown schedule 'mmmambo'. Did you mean 'mmmamba'?")


@pytest.mark.parametrize(
    "value", [3, 0.001, 1e-8, True, 'a "quoted" \\ text\n', "日本", [1, [2.5]], {"type": "x", "odd key": {"a": []}}, {}]
)
def test_inline_toml_reads_back_as_the_same_value(value: Any) -> None:
    assert tomllib.loads(f"value = {to_inline(value)}")["value"] == value


@pytest.mark.parametrize("value", [None, float("nan"), object()])
def test_inline_toml_refuses_what_a_recipe_cannot_hold(value: Any) -> None:
    with pytest.raises(TypeError, match="was due as a recipe value"):
        to_inline(value)
