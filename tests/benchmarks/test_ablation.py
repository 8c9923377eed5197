"""The ablation gives every cell the same time, and one command runs, resumes and reports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation_cells import (
    all_cells,
    allocate,
    ask_split,
    block_times,
    jobs_of,
    scaled_stage,
    training_seconds,
    untrained_stage,
)
from benchmarks.ablation_page import BEGIN, END, Row, page_text, spread, table
from linearize.errors import RecipeError
from linearize.plugin.discovery import Plugins
from linearize.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "ablation.py"
STEPS, PER_STEP = [60, 120, 500], [0.2, 0.25, 0.3]


@pytest.fixture
def base() -> dict[str, Any]:
    """The embedded recipe, resolved."""
    return load_recipe(ROOT / "examples" / "mmmamba_hovle.toml", [], Plugins.discover()).tables()


def test_the_cells_of_three_stages_are_those_of_the_papers_two_tables() -> None:
    cells = {cell.name: (cell.stages, cell.seeder) for cell in all_cells(3)}
    assert list(cells) == ["none", "1", "2", "3", "1+2", "1+3", "2+3", "1+2+3", "copy_qkv", "scratch"]
    assert cells["none"] == ((), "mimic")
    assert cells["1+3"] == ((0, 2), "mimic")
    assert cells["scratch"] == ((0, 1, 2), "scratch")


def test_the_whole_recipe_keeps_its_steps_when_its_own_time_is_the_budget() -> None:
    budget = training_seconds(STEPS, PER_STEP)
    assert allocate((0, 1, 2), STEPS, PER_STEP, budget) == dict(enumerate(STEPS))


@pytest.mark.parametrize("cell", [cell for cell in all_cells(3) if cell.stages], ids=lambda cell: cell.name)
def test_every_trained_cell_fills_the_same_time_in_the_recipes_proportions(cell: Any) -> None:
    budget = 500.0
    found = allocate(cell.stages, STEPS, PER_STEP, budget)
    times = {stage: count * PER_STEP[stage] for stage, count in found.items()}
    # Each stage is off by at most half a step, of at most 0.3 s.
    assert sum(times.values()) == pytest.approx(budget, abs=0.15 * len(times))
    whole = sum(STEPS[stage] * PER_STEP[stage] for stage in cell.stages)
    for stage, time in times.items():
        assert time == pytest.approx(budget * STEPS[stage] * PER_STEP[stage] / whole, abs=0.15)


def test_a_budget_below_one_step_still_trains_one_step_of_each_stage() -> None:
    assert allocate((0, 2), STEPS, PER_STEP, 0.01) == {0: 1, 2: 1}


def test_a_schedule_that_counts_in_steps_is_stretched_with_its_stage() -> None:
    stage = {"name": "a", "steps": 100, "lr_schedule": {"warmup": 0.1, "planned_steps": 400}}
    assert scaled_stage(stage, 50)["lr_schedule"] == {"warmup": 0.1, "planned_steps": 200}
    assert stage["lr_schedule"] == {"warmup": 0.1, "planned_steps": 400}


def test_block_times_are_seconds_per_step_without_the_first_line() -> None:
    lines = [
        {"step": 5, "tokens": 100, "tokens_per_second": 1.0},
        {"step": 10, "tokens": 300, "tokens_per_second": 100.0},
        {"step": 15, "tokens": 400, "tokens_per_second": 10.0},
    ]
    assert block_times("\n".join(map(json.dumps, lines))) == pytest.approx([2 / 5, 10 / 5])


def test_every_recipe_of_the_ablation_is_a_valid_one_and_stays_as_it_is_written(base: dict[str, Any]) -> None:
    plugins = Plugins.discover()
    jobs = list(jobs_of(base, all_cells(3), 2, PER_STEP, 300.0))
    assert len({job.name for job in jobs}) == len(jobs) == 20
    for job in jobs:
        # Equal tables are how a finished run is told from one of another recipe.
        assert load_recipe(job.tables, [], plugins).tables() == job.tables


def test_the_cells_of_one_seed_see_the_same_data_and_another_seed_sees_other_data(base: dict[str, Any]) -> None:
    jobs = list(jobs_of(base, all_cells(3), 2, PER_STEP, 300.0))
    for seed in (0, 1):
        own = [(job.tables["data"]["seed"], job.tables["run"]["seed"]) for job in jobs if job.seed == seed]
        assert own == [(seed, seed)] * 10


def test_the_stage_of_the_untrained_cell_leaves_parameters_as_they_are(base: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from linearize.distill.optimize import StageOptimizer
    from linearize.recipe.model import Stage

    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 8).view(2, 4) + 1e-3)
    before = parameter.detach().clone()
    parameter.grad = torch.ones_like(parameter)
    StageOptimizer(Stage.model_validate(untrained_stage(base["stages"][0])), {"weight": parameter}).step(0)
    assert torch.equal(parameter.detach(), before)


def test_benchmarks_are_asked_the_wanted_split_and_one_without_splits_is_refused(base: dict[str, Any]) -> None:
    ask_split(base, "validation")
    assert [table["split"] for table in base["evaluate"]["benchmarks"]] == ["validation"]
    with pytest.raises(RecipeError, match="'other' has no option `split`"):
        ask_split({"evaluate": {"benchmarks": [{"type": "other"}]}}, "validation")
    with pytest.raises(RecipeError, match="is empty"):
        ask_split({"evaluate": {"benchmarks": []}}, "validation")


def result(retention: float, student: float) -> dict[str, Any]:
    """What one run found, as far as the tables show it."""
    return {
        "run": "r",
        "average_retention": retention,
        "kl": 0.25,
        "tasks": {"ocr": {"teacher": 1.0, "student": student, "questions": 10}},
        "stages": [{"tokens": 1000, "seconds": 10.0}, {"tokens": 500, "seconds": 5.0}],
    }


def test_a_row_holds_mean_and_sample_deviation_over_the_seeds_and_says_which_runs_are_missing() -> None:
    row = Row("1+3", "mimic", [1, 3], [20, 1200], 3, [result(0.9, 0.5), result(0.8, 0.7)])
    lost = Row("scratch", "scratch", [1, 2, 3], [1, 2, 3], 3, [])
    text = table([row, lost])
    wanted = "| 1+3 (2 of 3 runs) | mimic | 20 + 1,200 | 1,500 | 15.0 ± 0.0 | 85.0 ± 7.1 | 0.250 ± 0.000 | 60.0 |"
    assert wanted in text
    assert "| 1+2+3 | scratch | 1 + 2 + 3 | no run finished |" in text
    assert text.splitlines()[-1] == "| teacher |  |  |  |  |  |  | 100.0 |"
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_a_missing_value_makes_no_mean_and_one_value_has_no_deviation() -> None:
    assert spread([None, 0.5], 1) == "–"
    assert spread([0.5], 1, 100.0) == "50.0"


def test_writing_the_page_again_keeps_conclusions_written_by_hand() -> None:
    first = page_text(None, "old numbers")
    edited = first.replace("# Ablation", "# My title\n\n# Ablation") + "\nConclusion by hand.\n"
    again = page_text(edited, "new numbers")
    assert again == edited.replace("old numbers", "new numbers")
    assert again.count(BEGIN) == again.count(END) == 1


def command(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The ablation with steps and questions that take seconds."""
    changes = ["run.device=cpu", "evaluate.batch_size=4", 'evaluate.benchmarks.0.tasks=["attribute"]']
    changes += ["evaluate.benchmarks.0.questions=2", "evaluate.max_new_tokens=4"]
    for stage in ("align-new", "align-mixer", "distill"):
        changes += [f"stages.{stage}.batch_size=2", f"stages.{stage}.steps=2"]
    words = [word for change in changes for word in ("--set", change)]
    sizes = ["--seeds", "1", "--threads", "1", "--calibration-steps", "2", "--split", "validation", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, str(SCRIPT), *words, *sizes, *more]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)


def test_the_command_measures_a_cell_goes_on_with_others_and_survives_one_that_fails(tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    done = command(out, "--cells", "2+3", "--seconds", "0.01")
    assert done.returncode == 0, done.stdout + done.stderr
    calibration, results = out / "calibration.json", out / "runs" / "stages-2-3-seed-0" / "report" / "results.json"
    stamps = [path.stat().st_mtime_ns for path in (calibration, results)]
    (row,) = json.loads((out / "ablation.json").read_text())["rows"]
    assert row["steps"] == {"2": 1, "3": 1}
    assert row["runs"][0]["tasks"]["attribute"]["questions"] == 2
    assert row["runs"][0]["tokens"] > 0

    # Another program has left a run of another recipe where the cell "3" would go.
    foreign = out / "runs" / "stages-3-seed-0"
    foreign.mkdir()
    (foreign / "recipe.toml").write_text("[run]\nname = 'other'\n")
    done = command(out, "--cells", "3", "2+3", "--seconds", "0.01", "--write", str(page))
    assert done.returncode == 1
    assert "stages-3-seed-0 failed with exit status 1" in done.stdout
    assert "1 of 2 runs failed" in done.stderr
    assert [path.stat().st_mtime_ns for path in (calibration, results)] == stamps, "finished work was done again"
    text = page.read_text()
    assert "| 3 | mimic | 1 | no run finished |" in text
    assert "| 2+3 | mimic | 1 + 1 |" in text
    assert "python benchmarks/ablation.py --set run.device=cpu" in text
    assert "split validation" in text


def test_an_out_folder_of_another_recipe_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps({"key": "other", "seconds_per_step": [1, 1, 1]}))
    done = command(tmp_path, "--cells", "none")
    assert done.returncode == 1
    assert "choose another --out" in done.stderr
    assert not (tmp_path / "runs").exists()
