"""What the runs of a comparison found, read back from their folders. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from linearize.comparison.cells import Cell, Comparison, Costs
from linearize.comparison.folder import ComparisonFolder
from linearize.comparison.noise import Estimate, TaskOutcomes, difference, mean_retention, retention
from linearize.comparison.running import Failure
from linearize.comparison.shared_options import Changes
from linearize.evaluate.scores import Interval
from linearize.files.json_file import read_json
from linearize.report.records import StageRecord, read_run
from linearize.report.sections import warnings_of


@dataclass(frozen=True, slots=True)
class DialPoint:
    """A task at one difficulty.

    Attributes:
        value: the teacher's share of right answers, or what a cell keeps of it, the mean over its seeds.
        interval: 95 %, over the questions.
    """

    difficulty: int
    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class CellFinding:
    """What one cell found, over those of its seeds that reached their end.

    Attributes:
        changes: how its recipe differs from that of the comparison.
        seeds: the runs that reached their end, by number from 0.
        num_linear, num_sites: attention sites that became linear, and all of them.
        tasks: what is kept of each task; None where the teacher has nothing to keep.
        average: over the tasks that the teacher can do.
        kl: KL(teacher || student) in nats per answer token, the mean over the seeds.
        tokens, training_seconds: of all stages, the mean over the seeds.
        decode_ms: milliseconds per generated token of one sequence.
        decode_rounds_ms: the same in each round of measuring; empty where it was not measured.
        dials: task -> its difficulties, easy first.
        stages: each seed's stages with their losses.
        warnings: what the evaluators warn of, each with its seed.
    """

    name: str
    changes: Changes
    seeds: tuple[int, ...]
    num_linear: int
    num_sites: int
    costs: Costs
    tasks: Mapping[str, Estimate | None]
    average: Estimate | None
    kl: float | None
    tokens: float | None
    training_seconds: float | None
    decode_ms: float | None
    decode_rounds_ms: tuple[float, ...]
    dials: Mapping[str, Sequence[DialPoint]]
    stages: Sequence[Sequence[StageRecord]]
    warnings: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens per second over all stages."""
        if not self.training_seconds or self.tokens is None:
            return None
        return self.tokens / self.training_seconds


@dataclass(frozen=True, slots=True)
class TeacherFinding:
    """What all cells are measured against.

    Attributes:
        shares: right answers, task by task.
    """

    shares: Mapping[str, float]
    cache_bytes_per_token: int
    decode_ms: float | None
    decode_rounds_ms: tuple[float, ...]
    dials: Mapping[str, Sequence[DialPoint]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more the first cell keeps than the second, over the seeds that both have.

    Attributes:
        seeds: how many these are.
        average, tasks: in shares of the teacher's right answers; None where the teacher has nothing to keep.
    """

    first: str
    second: str
    seeds: int
    average: Estimate | None
    tasks: Mapping[str, Estimate | None]


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """What a comparison found.

    Attributes:
        folder: of the comparison; report/index.html in it is the page.
        source: the recipe file.
        seeds: runs that each cell was to have.
        tasks: their names, in the order of the benchmarks.
        questions: asked per task.
        cells: those with a finished run, as the recipe lists them.
        teacher: None without any finished run.
        differences: every pair of cells, the better one first.
        failures: runs that did not reach their end.
        jobs: runs that were trained at the same time on this machine, at most.
        how_decoded: prompts, prompt_tokens and new_tokens of the measured speed; empty without it.
        environment: of the first finished run.
        seconds: of training that every cell was given; None where steps are the recipe's.
    """

    folder: Path
    source: str
    seeds: int
    tasks: tuple[str, ...]
    questions: Mapping[str, int]
    cells: tuple[CellFinding, ...]
    teacher: TeacherFinding | None
    differences: tuple[Difference, ...]
    failures: tuple[Failure, ...]
    jobs: int
    how_decoded: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float | None = None

    def ranked(self) -> list[CellFinding]:
        """The cells, the one that keeps most on average first."""
        return _ranked(self.cells)

    def between(self, better: str, worse: str) -> Difference | None:
        """The difference of two cells, whichever of them is first in it."""
        for found in self.differences:
            if {found.first, found.second} == {better, worse}:
                return found
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    results: Mapping[str, Any]
    outcomes: Mapping[str, TaskOutcomes]
    stages: Sequence[StageRecord]


def collect(
    comparison: Comparison,
    folder: ComparisonFolder,
    failures: Iterable[Failure],
    speed: Mapping[str, Any] | None,
    jobs: int,
) -> ComparisonResult:
    """Everything that the runs which reached their end have found.

    Args:
        speed: the content of decode.json.
        jobs: runs that were trained at the same time, at most.
    """
    runs: dict[str, dict[int, _Run]] = {}
    for cell, seed in folder.finished(comparison):
        runs.setdefault(cell.name, {})[seed] = _read_run(folder.run(cell, seed).path)
    cells = [_cell(cell, runs[cell.name], speed or {}) for cell in comparison.cells if cell.name in runs]
    some = next(iter(next(iter(runs.values())).values())) if runs else None
    tasks = tuple(some.results["tasks"]) if some else ()
    names = [cell.name for cell in _ranked(cells)]
    pairs = [_difference(first, second, runs, tasks) for first, second in itertools.combinations(names, 2)]
    return ComparisonResult(
        folder=folder.path,
        source=comparison.source,
        seeds=comparison.options.seeds,
        tasks=tasks,
        questions={task: some.results["tasks"][task]["questions"] for task in tasks} if some else {},
        cells=tuple(cells),
        teacher=_teacher(some, comparison.teacher_cache_bytes_per_token, speed or {}) if some else None,
        differences=tuple(pair for pair in pairs if pair is not None),
        failures=tuple(failures),
        jobs=jobs,
        how_decoded={key: speed[key] for key in ("prompts", "prompt_tokens", "new_tokens")} if speed else {},
        environment=some.results["environment"] if some else {},
        seconds=comparison.options.seconds,
    )


def read_outcomes(evaluation: Path, tasks: Iterable[str]) -> dict[str, TaskOutcomes]:
    """Who answered what right, from an evaluation's stored answers; ``student_SQ`` has one row.

    Args:
        tasks: names in the results: a task's, or benchmark/task where several benchmarks have it.
    """
    correct: dict[tuple[str, str], list[bool]] = {}
    for path in sorted((evaluation / "answers").glob("*.json")):
        stored = read_json(path)
        if isinstance(stored, dict) and stored.get("role") and stored["difficulty"] is None:
            right = [answer["correct"] for answer in stored["answers"]]
            for name in (stored["task"], f"{stored['benchmark']}/{stored['task']}"):
                correct[name, stored["role"]] = right
    return {
        task: TaskOutcomes(np.array(correct[task, "teacher"]), np.array([correct[task, "student"]])) for task in tasks
    }


def _ranked(cells: Iterable[CellFinding]) -> list[CellFinding]:
    return sorted(cells, key=lambda cell: -(cell.average.value if cell.average else -1.0))


def _read_run(path: Path) -> _Run:
    record = read_run(path)
    results = read_json(path / "report" / "results.json")
    return _Run(results, read_outcomes(path / "evaluation", results["tasks"]), record.stages)


def _over_seeds(runs: Sequence[_Run], task: str) -> TaskOutcomes:
    return TaskOutcomes(
        runs[0].outcomes[task].teacher_Q, np.concatenate([run.outcomes[task].student_SQ for run in runs])
    )


def _cell(cell: Cell, by_seed: Mapping[int, _Run], speed: Mapping[str, Any]) -> CellFinding:
    runs = list(by_seed.values())
    outcomes = {task: _over_seeds(runs, task) for task in runs[0].results["tasks"]}
    measured = speed.get("students", {}).get(cell.name, {})
    stages = [run.results["stages"] for run in runs]
    return CellFinding(
        name=cell.name,
        changes=cell.changes,
        seeds=tuple(by_seed),
        num_linear=len(cell.checked.plan.linear),
        num_sites=len(cell.checked.plan.sites),
        costs=cell.costs,
        tasks={task: retention(found) for task, found in outcomes.items()},
        average=mean_retention(list(outcomes.values())),
        kl=_mean(run.results["kl"] for run in runs),
        tokens=_mean(sum(stage["tokens"] for stage in each) for each in stages),
        training_seconds=_mean(sum(stage["seconds"] for stage in each) for each in stages),
        decode_ms=measured.get("ms"),
        decode_rounds_ms=tuple(measured.get("ms_by_round", ())),
        dials=_dials(runs, "retention"),
        stages=[run.stages for run in runs],
        warnings=tuple(f"seed {seed}: {text}" for seed, run in by_seed.items() for text in warnings_of(run.results)),
    )


def _teacher(run: _Run, cache_bytes: int, speed: Mapping[str, Any]) -> TeacherFinding:
    measured = speed.get("teacher", {})
    return TeacherFinding(
        shares={name: task["teacher"] for name, task in run.results["tasks"].items()},
        cache_bytes_per_token=cache_bytes,
        decode_ms=measured.get("ms"),
        decode_rounds_ms=tuple(measured.get("ms_by_round", ())),
        dials=_dials([run], "teacher"),
    )


def _dials(runs: Sequence[_Run], what: str) -> dict[str, list[DialPoint]]:
    """The points of each dial; those where the teacher has nothing to keep have no retention."""
    found: dict[str, list[DialPoint]] = {}
    for task, rows in (runs[0].results["dials"] or {}).items():
        for number, row in enumerate(rows):
            same = [run.results["dials"][task][number] for run in runs]
            if row[what] is not None:
                low, high = (fmean(each[f"{what}_interval"][end] for each in same) for end in (0, 1))
                value = fmean(each[what] for each in same)
                found.setdefault(task, []).append(DialPoint(row["difficulty"], value, (low, high)))
    return found


def _difference(
    first: str, second: str, runs: Mapping[str, Mapping[int, _Run]], tasks: Sequence[str]
) -> Difference | None:
    """The difference over the seeds that both have; None without such a seed."""
    common = [seed for seed in runs[first] if seed in runs[second]]
    if not common:
        return None
    one, other = ([[_over_seeds([runs[name][seed] for seed in common], task)] for task in tasks]
                  for name in (first, second))  # fmt: skip
    return Difference(
        first=first,
        second=second,
        seeds=len(common),
        average=difference([task for [task] in one], [task for [task] in other]),
        tasks={task: difference(a, b) for task, a, b in zip(tasks, one, other, strict=True)},
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
