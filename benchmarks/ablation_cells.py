"""What the ablation runs: its cells, how many steps fill the common time, and the recipe of every run."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from linearize.errors import Problem, RecipeError

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the ablation; ``stages`` holds positions in the recipe's list of stages."""

    name: str
    stages: tuple[int, ...]
    seeder: str


@dataclass(frozen=True, slots=True)
class Job:
    """One run: its name, its cell and seed, and its whole recipe."""

    cell: Cell
    seed: int
    tables: Table

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return str(self.tables["run"]["name"])


def all_cells(num_stages: int) -> list[Cell]:
    """ "none", every choice of stages under the paper's seeding, and all stages under the two other seedings."""
    numbers = range(num_stages)
    chosen = [some for size in numbers for some in itertools.combinations(numbers, size + 1)]
    cells = [Cell("+".join(str(number + 1) for number in some) or "none", some, "mimic") for some in ((), *chosen)]
    return cells + [Cell(seeder, tuple(numbers), seeder) for seeder in ("copy_qkv", "scratch")]


def training_seconds(steps: Sequence[int], seconds_per_step: Sequence[float]) -> float:
    """How long a recipe's stages take."""
    return sum(count * each for count, each in zip(steps, seconds_per_step, strict=True))


def allocate(
    stages: Sequence[int], steps: Sequence[int], seconds_per_step: Sequence[float], budget: float
) -> dict[int, int]:
    """Optimizer steps of each of a cell's stages, so that together they take ``budget`` seconds.

    The stages share the time as they do in the recipe; each gets at least one step.

    Args:
        stages: positions of those that the cell runs.
        steps: of every stage of the recipe.
        seconds_per_step: of every stage of the recipe.
    """
    own = training_seconds([steps[stage] for stage in stages], [seconds_per_step[stage] for stage in stages])
    return {stage: max(1, round(steps[stage] * budget / own)) for stage in stages}


def scaled_stage(stage: Table, steps: int) -> Table:
    """The stage at another length; its learning-rate schedule is stretched with it."""
    scaled = {**copy.deepcopy(stage), "steps": steps}
    planned = scaled["lr_schedule"].get("planned_steps")
    if planned is not None:
        scaled["lr_schedule"]["planned_steps"] = max(1, round(planned * steps / stage["steps"]))
    return scaled


def untrained_stage(stage: Table) -> Table:
    """A stage that changes nothing, since a run has one: one step at a learning rate below float32's resolution."""
    still = {**stage["optimizer"], "type": "adamw", "weight_decay": 0.0}
    return {**copy.deepcopy(stage), "name": "untrained", "steps": 1, "batch_size": 1, "lr": 1e-30, "optimizer": still}


def recipe_of(base: Table, name: str, seeder: str, stages: list[Table], seed: int = 0) -> Table:
    """The base recipe with another name, seeder and stages; ``seed`` is added to its seeds, that of its data too."""
    tables = {**copy.deepcopy(base), "stages": stages}
    tables["run"] |= {"name": name, "seed": base["run"]["seed"] + seed}
    tables["student"]["seeder"] = {"type": seeder}
    if "seed" in tables["data"]:
        tables["data"]["seed"] += seed
    return tables


def jobs_of(base: Table, cells: Sequence[Cell], seeds: int, per_step: Sequence[float], budget: float) -> Iterator[Job]:
    """Every run of the ablation, the first seed of all cells first."""
    steps = [stage["steps"] for stage in base["stages"]]
    for seed, cell in itertools.product(range(seeds), cells):
        allotted = allocate(cell.stages, steps, per_step, budget)
        stages = [scaled_stage(base["stages"][stage], count) for stage, count in allotted.items()]
        what = cell.name if cell.stages == () or cell.seeder == cell.name else f"stages-{cell.name.replace('+', '-')}"
        name = f"{what}-seed-{base['run']['seed'] + seed}"
        stages = stages or [untrained_stage(base["stages"][0])]
        yield Job(cell, seed, recipe_of(base, name, cell.seeder, stages, seed))


def ask_split(base: Table, split: str) -> None:
    """Lets every benchmark of the recipe ask the questions of one split.

    Raises:
        RecipeError: there is no benchmark, or one has no splits.
    """
    benchmarks = base["evaluate"]["benchmarks"]
    problems = [
        Problem(f"evaluate.benchmarks.{number}", f"'{table['type']}' has no option `split`; one that has it was due")
        for number, table in enumerate(benchmarks)
        if "split" not in table
    ]
    if problems or not benchmarks:
        empty = Problem("evaluate.benchmarks", "is empty; at least one was due", code="empty")
        raise RecipeError("the ablation's recipe", problems or [empty])
    for table in benchmarks:
        table["split"] = split


def block_times(metrics: str) -> list[float]:
    """Seconds per optimizer step between the lines of a metrics.jsonl, without the first line: it holds warming up."""
    lines = [json.loads(line) for line in metrics.splitlines()]
    return [
        (line["tokens"] - before["tokens"]) / line["tokens_per_second"] / (line["step"] - before["step"])
        for before, line in itertools.pairwise(lines)
    ]
