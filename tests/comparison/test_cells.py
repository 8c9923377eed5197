"""What a comparison runs, and everything that is refused before it runs anything."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from checkout import DOCS, EXAMPLES, ROOT
from typer.testing import CliRunner

import linearize
from linearize.cli.app import app
from linearize.comparison.cells import Comparison, plan_comparison
from linearize.comparison.folder import ComparisonFolder
from linearize.comparison.running import share_of_the_machine
from linearize.errors import RecipeError, RunError
from linearize.files.run_folder import RunFolder
from linearize.plan.mixers import meta_mixer
from linearize.recipe.toml import read_tables

Tables = Callable[..., dict[str, Any]]
LAYOUTS = [{"type": "all"}, {"type": "every", "keep": 2}]


def names(comparison: Comparison) -> list[str]:
    return [cell.name for cell in comparison.cells]


def problems(tables: dict[str, Any], *arguments: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        plan_comparison(tables, *arguments, **options)
    return tuple(map(str, caught.value.problems))


def test_every_combination_of_the_alternatives_is_a_cell_named_by_what_differs(tables: Tables) -> None:
    vary = {"student": {"mixer": {"conv_width": [2, 4]}, "layout": LAYOUTS}}
    comparison = plan_comparison(tables(vary=vary))
    assert names(comparison) == [
        "conv_width-2-all", "conv_width-2-every-keep-2", "conv_width-4-all", "conv_width-4-every-keep-2",
    ]  # fmt: skip
    student = comparison.cells[3].tables(0)["student"]
    assert student["mixer"]["conv_width"] == 4
    assert student["layout"] == {"type": "every", "keep": 2, "position": "first"}
    assert comparison.name == "tiny-compare"


def test_one_alternative_is_set_everywhere_and_names_nothing(tables: Tables) -> None:
    vary = {"student": {"mixer": {"conv_width": [3]}, "seeder": {"type": ["mimic", "scratch"]}}}
    comparison = plan_comparison(tables(vary=vary))
    assert names(comparison) == ["mimic", "scratch"]
    assert [cell.tables(0)["student"]["mixer"]["conv_width"] for cell in comparison.cells] == [3, 3]


def test_objective_and_learning_rate_of_a_stage_are_varied_by_its_name(tables: Tables) -> None:
    vary = {"stages": {"distill": {"lr": [1e-3, 2e-3], "objective": {"temperature": [1.0, 2.0]}}}}
    comparison = plan_comparison(tables(vary=vary))
    assert names(comparison)[-1] == "lr-0.002-temperature-2"
    stage = comparison.cells[-1].tables(0)["stages"][1]
    assert (stage["lr"], stage["objective"]["temperature"]) == (2e-3, 2.0)


def test_named_cells_change_several_keys_and_combine_with_alternatives(tables: Tables) -> None:
    cells = [
        {"name": "plain"},
        {"name": "wide", "set": {"student": {"mixer": {"conv_width": 4}}, "stages": {"distill": {"lr": 0.5}}}},
    ]
    comparison = plan_comparison(tables(cells=cells, vary={"student": {"layout": LAYOUTS}}))
    assert names(comparison) == ["all-plain", "all-wide", "every-keep-2-plain", "every-keep-2-wide"]
    wide = comparison.cells[3].tables(0)
    assert (wide["student"]["mixer"]["conv_width"], wide["stages"][1]["lr"]) == (4, 0.5)


def test_a_type_is_set_before_its_options_in_whatever_order_they_are_written(tables: Tables) -> None:
    cells = [{"name": "hybrid", "set": {"student": {"layout": {"keep": 2, "type": "every"}}}}]
    assert plan_comparison(tables(cells=cells)).cells[0].tables(0)["student"]["layout"]["keep"] == 2


def test_mixers_of_the_command_line_take_the_place_of_the_tables(tables: Tables) -> None:
    vary = {"student": {"mixer": [{"type": "mamba2"}, {"type": "mamba2", "conv_width": 4}], "layout": LAYOUTS}}
    assert names(plan_comparison(tables(vary=vary), mixers=["mamba2"])) == ["all", "every-keep-2"]
    assert names(plan_comparison(tables(), mixers=["mamba2"])) == ["mamba2"]


def test_mixers_of_the_command_line_take_the_place_of_those_in_cells(tables: Tables) -> None:
    cells: list[dict[str, Any]] = [
        {"name": "plain"},
        {"name": "gla", "set": {"student": {"mixer": {"type": "gla", "conv_width": 4}}}},
        {"name": "retnet", "set": {"student": {"mixer": {"type": "retnet"}}}},
    ]
    both = ["mamba2", "simple_gla"]
    comparison = plan_comparison(tables(cells=cells, vary={"student": {"layout": LAYOUTS}}), mixers=both)
    assert names(comparison) == [f"{mixer}-{layout}" for mixer in both for layout in ("all", "every-keep-2")]
    assert comparison.cells[2].tables(0)["student"]["mixer"]["conv_width"] == 2
    cells[2]["set"] |= {"stages": {"distill": {"lr": 0.5}}}
    comparison = plan_comparison(tables(cells=cells), mixers=both)
    assert names(comparison) == ["mamba2-plain", "mamba2-retnet", "simple_gla-plain", "simple_gla-retnet"]
    assert comparison.cells[3].tables(0)["student"]["mixer"]["type"] == "simple_gla"
    assert comparison.cells[3].tables(0)["stages"][1]["lr"] == 0.5


def test_keys_of_compare_and_of_the_recipe_can_be_set_from_outside(tables: Tables) -> None:
    overrides = ["compare.seeds=3", "compare.name=other", "stages.distill.steps=7"]
    comparison = plan_comparison(tables(), overrides, mixers=["mamba2"])
    assert (comparison.options.seeds, comparison.name) == (3, "other")
    assert comparison.cells[0].tables(0)["stages"][1]["steps"] == 7
    assert plan_comparison(tables(), overrides, mixers=["mamba2"], seeds=2).options.seeds == 2


def test_cells_of_one_seed_see_the_same_data_and_another_seed_sees_other_data(tables: Tables) -> None:
    comparison = plan_comparison(tables(vary={"student": {"layout": LAYOUTS}}), ["run.seed=5"], seeds=2)
    seen = [(t["run"]["seed"], t["data"]["seed"]) for cell, seed in comparison.runs() for t in [cell.tables(seed)]]
    assert seen == [(5, 0), (5, 0), (6, 1), (6, 1)]
    assert len({str(cell.tables(seed)["evaluate"]) for cell, seed in comparison.runs()}) == 1
    assert [(cell.name, seed) for cell, seed in comparison.runs()][:2] == [("all", 0), ("every-keep-2", 0)]


def test_costs_count_new_parameters_trained_ones_and_memory(tables: Tables) -> None:
    linear, hybrid = plan_comparison(tables(vary={"student": {"layout": LAYOUTS}})).cells
    plan = linear.checked.plan
    mixer = meta_mixer(linear.checked.recipe.components["student.mixer"], plan.sites[0])
    sizes = {name: parameter.numel() for name, parameter in mixer.named_parameters()}
    new = sum(size for name, size in sizes.items() if "new" in mixer.roles()[name])
    assert linear.costs.parameters_added == new * len(plan.sites)
    assert linear.costs.parameters_trained == sum(sizes.values()) * len(plan.sites)
    assert linear.costs.cache_bytes_per_token == 0
    site, kept = plan.sites[0], len(plan.sites) - len(hybrid.checked.plan.linear)
    # float32 keys and values of the sites that keep their attention.
    assert hybrid.costs.cache_bytes_per_token == 4 * kept * site.num_key_value_heads * (site.key_dim + site.value_dim)
    assert hybrid.costs.state_bytes * len(plan.sites) == linear.costs.state_bytes * (len(plan.sites) - kept)


def test_an_unknown_mixer_is_told_with_the_nearest_name_and_the_others_problems(tables: Tables) -> None:
    found = problems(tables(), ["stages.0.steps=-1"], mixers=["mamba2", "mamba22"])
    assert found[0] == "stages.align.steps: Input should be greater than or equal to 0; got -1"
    assert found[1].startswith("cell 'mamba22': student.mixer.type: unknown mixer 'mamba22'. Did you mean 'mamba2'?")
    assert len(found) == 2


def test_a_key_that_does_not_exist_is_told_once_for_all_cells(tables: Tables) -> None:
    [found] = problems(tables(vary={"student": {"mixer": {"conv_widht": [1, 2]}}}))
    assert found.startswith("student.mixer.conv_widht: unknown key; got 1. Did you mean 'conv_width'?")
    [found] = problems(tables(vary={"stages": {"distil": {"lr": [1, 2]}}}))
    assert found == "stages.distil: there is no entry 'distil'. Did you mean 'distill'? There are: align, distill"


def test_a_value_that_is_wrong_in_one_cell_is_told_with_the_cell(tables: Tables) -> None:
    [found] = problems(tables(vary={"student": {"layout": [{"type": "all"}, {"type": "stacked", "num_kept": 99}]}}))
    assert found.startswith("cell 'stacked-num_kept-99': student.layout: keeps 99 sites, but the teacher has ")


def test_the_problems_of_the_table_are_told_together(tables: Tables) -> None:
    vary = {
        "student": {"mixer": {"type": [], "conv_width": 4}},
        "evaluate": {"batch_size": [1, 2]},
        "teacher": {"type": ["hovle"]},
        "run": {"seed": [1, 2]},
    }
    cells = [{"name": "a", "set": {"student": {"mixer": {"type": "mamba2"}}}}]
    assert problems(tables(vary=vary, cells=cells)) == (
        "compare.vary.student.mixer.conv_width: expected a list of alternatives; got 4",
        "compare.vary.student.mixer.type: is empty; expected at least one alternative",
        "compare.cells.a.set.student.mixer.type: is varied by compare.vary too; expected one place",
        "compare.vary.evaluate.batch_size: all cells share `evaluate`: cells that are asked other questions cannot be "
        "compared",
        "compare.vary.teacher.type: all cells share `teacher`: what a student keeps is measured against one teacher",
        "compare.vary.run.seed: all cells share `run`: the runs of a comparison compute alike",
    )


@pytest.mark.parametrize(
    ("table", "mixers", "problem"),
    [
        (
            {},
            None,
            "compare: nothing is varied; give --mixer A,B with two mixers or a [compare] table with `vary` or `cells`",
        ),
        ({}, [], "compare.vary.student.mixer.type: is empty; expected at least one alternative"),
        ({}, ["mamba2", "mamba2"], "compare: two cells have the same name: mamba2"),
        ({"cells": [{"name": "a"}, {"name": "a"}]}, None, "compare: two cells have the same name: a"),
        (
            {"vary": {"run_": {"lr": [float("inf")]}}},
            None,
            "compare.vary.run_.lr: expected a text, number, truth value, list or table as a recipe value; got inf",
        ),
        ({"cells": [{"name": "a b"}]}, None, "compare.cells.0.name: String should match pattern"),
        ({"seeds": 0}, None, "compare.seeds: Input should be greater than 0; got 0"),
        ({"vray": {}}, None, "compare.vray: unknown key; got {}. Did you mean 'vary'?"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    table: dict[str, Any], mixers: list[str] | None, problem: str, tables: Tables
) -> None:
    [found] = problems(tables(**table), mixers=mixers)
    assert found.startswith(problem)


def test_a_comparison_without_questions_is_refused(tables: Tables) -> None:
    [found] = problems(tables(), ["evaluate.benchmarks=[]"], mixers=["mamba2"])
    assert found == "evaluate.benchmarks: is empty; a comparison needs questions to compare by"


def test_a_single_run_of_a_comparison_is_refused_with_the_right_command(tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "compare.toml"
    path.write_text(tomli_w.dumps(tables(vary={"student": {"layout": LAYOUTS}})), encoding="utf-8")
    for command in ("run", "check", "plan"):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 1
        assert "compare: describes many runs; `linearize compare` runs them" in result.stderr


def test_nothing_is_made_where_a_recipe_has_problems(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"cell 'gla_x': student\.mixer\.type: unknown mixer 'gla_x'"):
        linearize.compare(tables(), mixers=["mamba2", "gla_x"])
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_of_several_processes_is_refused(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="2 processes were launched, but a comparison starts a process for each run"):
        linearize.compare(tables(), mixers=["mamba2"])


def test_a_dry_run_lists_the_cells_and_runs_nothing(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "compare.toml"
    path.write_text(tomli_w.dumps(tables(vary={"student": {"layout": LAYOUTS}})), encoding="utf-8")
    one = CliRunner().invoke(app, ["compare", str(path), "--dry-run", "--mixer", "gla", "--set", "compare.vary={}"])
    assert "1 cell, run with 1 seed, in runs/tiny-compare" in one.stdout
    result = CliRunner().invoke(app, ["compare", str(path), "--dry-run", "--seeds", "2"])
    assert result.exit_code == 0
    assert "every-keep-2" in result.stdout
    assert "2 cells, run with 2 seeds, in runs/tiny-compare" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_a_folder_keeps_to_its_comparison_while_cells_and_seeds_may_come_and_go(tables: Tables, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    vary = {"student": {"layout": LAYOUTS}}
    folder.claim(plan_comparison(tables(vary=vary)))
    folder.claim(plan_comparison(tables(vary={"student": {"layout": LAYOUTS[:1]}}), seeds=3))
    folder.claim(plan_comparison(tables(vary=vary), ["compare.decode_tokens=4"]))
    with pytest.raises(
        RunError, match=r"holds another comparison; what changed:\n  - evaluate.batch_size: was 64, now 8"
    ):
        folder.claim(plan_comparison(tables(vary=vary), ["evaluate.batch_size=8"]))
    with pytest.raises(RunError, match=r"  - cell 'every-keep-2': stages.distill.lr: was 0.001, now 0.5\n"):
        folder.claim(plan_comparison(tables(vary=vary), ["stages.distill.lr=0.5"]))


def test_keys_that_an_older_comparison_did_not_have_are_at_their_defaults(tables: Tables, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    folder.claim(plan_comparison(tables(), mixers=["mamba2"]))
    older = json.loads(folder.manifest.read_text())
    del older["format"], older["shared"]["evaluate"]["num_examples"]
    for cell in older["cells"].values():
        del cell["evaluate"]["num_examples"]
    folder.manifest.write_text(json.dumps(older))
    folder.claim(plan_comparison(tables(), mixers=["mamba2"]))
    with pytest.raises(RunError, match=r"evaluate\.num_examples: was \d+, now 7"):
        folder.claim(plan_comparison(tables(), ["evaluate.num_examples=7"], mixers=["mamba2"]))


def test_the_folder_of_a_run_and_one_in_use_are_refused(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    with RunFolder(tmp_path).locked(), pytest.raises(RunError, match="is in use by another"), folder.locked():
        pass
    (tmp_path / "recipe.toml").touch()
    refused = pytest.raises(RunError, match=r"holds a run, not a comparison; give the comparison another compare\.name")
    with refused, folder.locked():
        pass


def test_a_run_and_a_report_of_a_run_are_refused_in_the_folder_of_a_comparison(tables: Tables, tmp_path: Path) -> None:
    ComparisonFolder(tmp_path).claim(plan_comparison(tables(), mixers=["mamba2"]))
    with pytest.raises(RunError, match=r"holds a comparison, not a run; give this run another run\.name"):
        RunFolder(tmp_path).claim(plan_comparison(tables(), mixers=["mamba2"]).cells[0].checked.recipe)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "its `linearize compare`, typed again, makes its report anew" in result.stderr
    assert not (tmp_path / "report").exists()


def test_the_example_compares_four_mixers_pure_and_hybrid() -> None:
    path = EXAMPLES / "compare_mixers.toml"
    comparison = plan_comparison(path)
    assert len(comparison.cells) == 8
    assert len({cell.checked.recipe.components["student.mixer"].spec.name for cell in comparison.cells}) == 4
    assert comparison.name == read_tables(path)["compare"]["name"]
    assert {len(cell.checked.plan.linear) for cell in comparison.cells} == {6, 8}


def test_the_toml_of_the_page_is_a_comparison(tables: Tables) -> None:
    page = (DOCS / "compare.md").read_text(encoding="utf-8")
    blocks = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    assert blocks
    base = read_tables(EXAMPLES / "mmmamba_hovle.toml")
    planned = [plan_comparison(base | {"compare": block["compare"]}) for block in blocks]
    assert len(planned[0].cells) == 12
    assert "conv_width-2-every-keep-4-lr-0.003" in names(planned[0])


def test_the_commands_of_the_page_have_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (DOCS / "compare.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        arguments = [*line.split()[1:], "--dry-run"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.stderr


def test_runs_at_a_time_are_dealt_the_listed_gpus_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    dealt = [share_of_the_machine(slot, jobs=3) for slot in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in dealt] == ["2", "5", "2"]
    assert {share["OMP_NUM_THREADS"] for share in dealt} == {"5"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert share_of_the_machine(0, jobs=3) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("linearize.comparison.running._all_gpus", lambda: ["0", "1"])
    assert share_of_the_machine(1, jobs=3)["CUDA_VISIBLE_DEVICES"] == "1"
