"""Cells of equal training time: a step is timed in short runs, then each cell gets the steps that fill the time.

Steps are fixed before anything is compared, so that runs resume and repeat as any others; the time is that of this
machine while it measures.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from linearize.comparison.cells import Cell, Comparison
from linearize.comparison.folder import ComparisonFolder
from linearize.comparison.running import run_cells
from linearize.errors import RunError
from linearize.pipeline.display import Display
from linearize.plan.check import check_recipe
from linearize.plugin.tables import Table

TIMED_BLOCKS = 6
"""Lines of metrics.jsonl that a stage's timing is cut into; the first holds warming up and is left out."""


def with_equal_time(
    comparison: Comparison, folder: ComparisonFolder, display: Display, *, show: bool, jobs: int = 1
) -> Comparison:
    """The comparison with the steps of every cell's stages chosen so that its training takes ``compare.seconds``.

    A cell's stages share the time as they do in its recipe. What was measured before in the folder counts again.

    Args:
        show, jobs: as in ``run_cells``; as many runs at a time are timed as are trained later.

    Raises:
        RunError: a cell's steps could not be timed.
    """
    seconds = comparison.options.seconds
    if seconds is None:
        return comparison
    timing = ComparisonFolder(folder.path / "timing")
    timed = [cell for cell in comparison.cells if any(stage["steps"] for stage in _stages(cell))]
    short = replace(
        comparison,
        cells=tuple(_rechecked(cell, timing_tables(_tables(cell), comparison.options.timing_steps))
                    for cell in timed),
        options=comparison.options.model_copy(update={"seeds": 1}),
    )  # fmt: skip
    if short.cells:
        timing.claim(short, jobs)
        display.note(f"timing {comparison.options.timing_steps} steps of every stage")
    for failure in run_cells(short, timing, display, show=show, jobs=jobs):
        raise RunError(f"the steps of cell '{failure.cell}' could not be timed: {failure.text} (log: {failure.log})")
    filled = {}
    for cell in short.cells:
        run = timing.run(cell, 0)
        per_step = {
            number: _seconds_per_step(run.stage(number, stage["name"]) / "metrics.jsonl")
            for number, stage in enumerate(_stages(cell))
            if stage["steps"]
        }
        [original] = [one for one in timed if one.name == cell.name]
        tables = fill_time(_tables(original), per_step, seconds)
        steps = ", ".join(f"{stage['name']} {stage['steps']}" for stage in tables["stages"] if stage["steps"])
        display.note(f"{cell.name}: {steps}")
        filled[cell.name] = _rechecked(original, tables)
    return replace(comparison, cells=tuple(filled.get(cell.name, cell) for cell in comparison.cells))


def timing_tables(tables: Table, steps: int) -> Table:
    """The recipe with that many steps of each stage that has any, and no questions."""
    tables = copy.deepcopy(tables)
    tables["stages"] = [scaled_stage(stage, steps) if stage["steps"] else stage for stage in tables["stages"]]
    tables["evaluate"]["benchmarks"] = []
    tables["run"]["log_every"] = max(1, steps // TIMED_BLOCKS)
    return tables


def fill_time(tables: Table, seconds_per_step: Mapping[int, float], seconds: float) -> Table:
    """The recipe with its stages lengthened or shortened by one factor, so that they take ``seconds``.

    Each stage that has any steps keeps at least one.

    Args:
        seconds_per_step: of each such stage, by its position.
    """
    tables = copy.deepcopy(tables)
    stages = tables["stages"]
    own = sum(stages[number]["steps"] * each for number, each in seconds_per_step.items())
    for number in seconds_per_step:
        stages[number] = scaled_stage(stages[number], max(1, round(stages[number]["steps"] * seconds / own)))
    return tables


def scaled_stage(stage: Table, steps: int) -> Table:
    """The stage at another length; its learning-rate schedule is stretched with it."""
    scaled = {**copy.deepcopy(stage), "steps": steps}
    planned = scaled["lr_schedule"].get("planned_steps")
    if planned is not None:
        scaled["lr_schedule"]["planned_steps"] = max(1, round(planned * steps / stage["steps"]))
    return scaled


def block_times(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds per optimizer step between lines of metrics.jsonl; the first line holds warming up."""
    return [
        (line["tokens"] - before["tokens"]) / line["tokens_per_second"] / (line["step"] - before["step"])
        for before, line in itertools.pairwise(lines)
    ]


def _seconds_per_step(metrics: Any) -> float:
    return statistics.median(block_times([json.loads(line) for line in metrics.read_text("utf-8").splitlines()]))


def _tables(cell: Cell) -> Table:
    return cell.checked.recipe.tables()


def _stages(cell: Cell) -> list[Table]:
    stages: list[Table] = _tables(cell)["stages"]
    return stages


def _rechecked(cell: Cell, tables: Table) -> Cell:
    return replace(cell, checked=check_recipe(tables, (), cell.checked.recipe.plugins))
