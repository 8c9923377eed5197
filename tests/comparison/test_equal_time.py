"""Cells of equal training time: steps are timed once, scaled together, and fixed from then on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import EXAMPLES

from linearize.comparison import equal_time
from linearize.comparison.cells import Comparison, plan_comparison
from linearize.comparison.equal_time import block_times, fill_time, scaled_stage, timing_tables, with_equal_time
from linearize.comparison.folder import ComparisonFolder
from linearize.comparison.running import Failure
from linearize.errors import RunError
from linearize.pipeline.display import SilentDisplay

Tables = Callable[..., dict[str, Any]]
CELLS = [
    {"name": "none", "set": {"stages": {"align": {"steps": 0}, "distill": {"steps": 0}}}},
    {"name": "last", "set": {"stages": {"align": {"steps": 0}}}},
    {"name": "both"},
]


def stage(steps: int, planned: int | None = None) -> dict[str, Any]:
    return {"name": f"of-{steps}", "steps": steps, "lr_schedule": {} if planned is None else {"planned_steps": planned}}


def steps(comparison: Comparison) -> dict[str, list[int]]:
    return {cell.name: [one["steps"] for one in cell.tables(0)["stages"]] for cell in comparison.cells}


def test_all_stages_of_a_cell_are_scaled_by_one_factor_to_fill_the_time() -> None:
    tables = {"stages": [stage(10), stage(0), stage(40)]}
    filled = fill_time(tables, {0: 2.0, 2: 0.5}, seconds=120)["stages"]
    assert [one["steps"] for one in filled] == [30, 0, 120]
    assert [one["steps"] for one in tables["stages"]] == [10, 0, 40]


def test_a_stage_keeps_at_least_a_step() -> None:
    filled = fill_time({"stages": [stage(1), stage(1000)]}, {0: 1.0, 1: 1.0}, seconds=10)["stages"]
    assert [one["steps"] for one in filled] == [1, 10]


def test_a_learning_rate_schedule_is_stretched_with_its_stage() -> None:
    assert scaled_stage(stage(10, planned=40), 25)["lr_schedule"] == {"planned_steps": 100}
    assert scaled_stage(stage(10), 25)["lr_schedule"] == {}


def test_a_timing_run_has_the_stages_that_the_cell_has_and_asks_nothing(tables: Tables) -> None:
    comparison = plan_comparison(tables(cells=CELLS))
    short = timing_tables(comparison.cells[1].checked.recipe.tables(), steps=12)
    assert [one["steps"] for one in short["stages"]] == [0, 12]
    assert (short["evaluate"]["benchmarks"], short["run"]["log_every"]) == ([], 2)


def test_the_first_line_of_the_metrics_is_not_timed() -> None:
    lines = [
        {"step": 2, "tokens": 200, "tokens_per_second": 1.0},
        {"step": 4, "tokens": 400, "tokens_per_second": 50.0},
        {"step": 8, "tokens": 1000, "tokens_per_second": 75.0},
    ]
    assert block_times(lines) == [2.0, 2.0]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are not run: their metrics say 1 s for a step of `align` and 0.25 s for one of `distill`; gives who ran."""
    ran: list[str] = []

    def run_cells(comparison: Comparison, folder: ComparisonFolder, *_: Any, **__: Any) -> list[Failure]:
        for cell in comparison.cells:
            for number, one in enumerate(cell.tables(0)["stages"]):
                path = folder.run(cell, 0).stage(number, one["name"]) / "metrics.jsonl"
                if one["steps"] and not path.exists():
                    ran.append(f"{cell.name} {one['name']}")
                    path.parent.mkdir(parents=True)
                    rate = {"align": 10.0, "distill": 40.0}[one["name"]]
                    lines = [{"step": n, "tokens": 10 * n, "tokens_per_second": rate} for n in range(1, 5)]
                    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return []

    monkeypatch.setattr(equal_time, "run_cells", run_cells)
    return ran


def test_every_cell_gets_the_steps_that_fill_the_time(tables: Tables, tmp_path: Path, timed: list[str]) -> None:
    comparison = plan_comparison(tables(cells=CELLS, seconds=35.0))
    assert steps(comparison)["both"] == [2, 3]
    filled = with_equal_time(comparison, ComparisonFolder(tmp_path), SilentDisplay(), show=False)
    assert steps(filled) == {"none": [0, 0], "last": [0, 140], "both": [25, 38]}
    assert timed == ["last distill", "both align", "both distill"]


def test_what_was_timed_once_counts_when_the_comparison_goes_on(
    tables: Tables, tmp_path: Path, timed: list[str]
) -> None:
    comparison = plan_comparison(tables(cells=CELLS, seconds=35.0))
    first = with_equal_time(comparison, ComparisonFolder(tmp_path), SilentDisplay(), show=False)
    num_timed = len(timed)
    again = with_equal_time(comparison, ComparisonFolder(tmp_path), SilentDisplay(), show=False)
    assert (steps(again), len(timed)) == (steps(first), num_timed)
    other = plan_comparison(tables(cells=CELLS, seconds=35.0), ["stages.distill.lr=0.5"])
    with pytest.raises(RunError, match=r"cell 'last': stages\.distill\.lr: was 0\.001, now 0\.5"):
        with_equal_time(other, ComparisonFolder(tmp_path), SilentDisplay(), show=False)


def test_a_cell_that_cannot_be_timed_is_told(tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure("both", 0, "memory does not suffice", "", tmp_path / "log")
    monkeypatch.setattr(equal_time, "run_cells", lambda *_, **__: [failure])
    comparison = plan_comparison(tables(cells=CELLS, seconds=35.0))
    with pytest.raises(RunError, match="the steps of cell 'both' could not be timed: memory does not suffice"):
        with_equal_time(comparison, ComparisonFolder(tmp_path), SilentDisplay(), show=False)


def test_without_a_time_the_steps_are_the_recipes(tables: Tables, tmp_path: Path) -> None:
    comparison = plan_comparison(tables(cells=CELLS))
    assert with_equal_time(comparison, ComparisonFolder(tmp_path), SilentDisplay(), show=False) is comparison
    assert list(tmp_path.iterdir()) == []


def test_a_cell_without_steps_trains_no_parameter(tables: Tables) -> None:
    none, last, both = plan_comparison(tables(cells=CELLS)).cells
    assert none.costs.parameters_trained == 0 < last.costs.parameters_trained == both.costs.parameters_trained
    assert none.costs.parameters_added == both.costs.parameters_added


def test_the_ablation_has_every_choice_of_stages_and_the_other_seedings() -> None:
    comparison = plan_comparison(EXAMPLES / "mmmamba_ablation.toml")
    chosen = {
        tuple(number for number, one in enumerate(cell.tables(0)["stages"], start=1) if one["steps"])
        for cell in comparison.cells
    }
    assert chosen == {(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)}
    seeders = [cell.tables(0)["student"]["seeder"]["type"] for cell in comparison.cells]
    assert (len(seeders), seeders.count("mimic"), set(seeders)) == (10, 8, {"mimic", "copy_qkv", "scratch"})
    assert (comparison.options.seconds, comparison.options.seeds) == (90, 3)
