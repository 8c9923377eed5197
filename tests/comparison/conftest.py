"""A small recipe to vary, and comparisons whose findings are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import tiny_recipe

from linearize.comparison.cells import Costs
from linearize.comparison.findings import CellFinding, ComparisonResult, DialPoint, Difference, TeacherFinding
from linearize.comparison.noise import TaskOutcomes, difference, mean_retention, retention
from linearize.comparison.running import Failure
from linearize.report.records import StageRecord


@pytest.fixture
def tables() -> Callable[..., dict[str, Any]]:
    """A recipe without problems with the ``[compare]`` table given."""

    def with_compare(**compare: Any) -> dict[str, Any]:
        evaluate = {"benchmarks": [{"type": "glance", "questions": 2}]}
        return {**tiny_recipe(), "evaluate": evaluate, **({"compare": compare} if compare else {})}

    return with_compare


def made_up(folder: Path, shares: dict[str, Sequence[float]], failures: Sequence[Failure] = ()) -> ComparisonResult:
    """A comparison of cells that keep these shares of two tasks, on 200 questions in three seeds."""
    teacher = np.ones(200, bool)
    draw = np.random.default_rng(0)
    found: dict[str, dict[str, TaskOutcomes]] = {}
    cells = []
    for number, (name, (first, second)) in enumerate(shares.items()):
        found[name] = {
            "ocr": TaskOutcomes(teacher, draw.random((3, 200)) < first),
            "recall": TaskOutcomes(teacher, draw.random((3, 200)) < second),
        }
        lines = [{"step": step, "loss": (number + 1) / step} for step in range(10, 200, 10)]
        stages = [StageRecord(1, "align", None, lines), StageRecord(2, "distill", None, lines)]
        cells.append(
            CellFinding(
                name=name,
                changes=(("student.mixer.type", name),),
                seeds=(0, 1, 2),
                num_linear=8 - number,
                num_sites=8,
                costs=Costs(100_000 + number, 400_000, 139_264 * (number + 1), 512 * number),
                tasks={task: retention(each) for task, each in found[name].items()},
                average=mean_retention(list(found[name].values())),
                kl=0.1 * (number + 1),
                tokens=1e6,
                training_seconds=100.0 + number,
                decode_ms=4.0 + number,
                decode_rounds_ms=(3.9 + number, 4.0 + number, 4.2 + number),
                dials={"recall": [DialPoint(level, 1 / (1 + number * level), (0.0, 1.0)) for level in (2, 4, 8)]},
                stages=[stages, stages, stages],
            )
        )
    ranked = sorted(cells, key=lambda cell: -cell.average.value)  # type: ignore[union-attr]
    pairs = [(a.name, b.name) for place, a in enumerate(ranked) for b in ranked[place + 1 :]]
    return ComparisonResult(
        folder=folder,
        source="mixers.toml",
        seeds=3,
        tasks=("ocr", "recall"),
        questions={"ocr": 200, "recall": 200},
        cells=tuple(cells),
        teacher=TeacherFinding(
            {"ocr": 1.0, "recall": 1.0}, 4096, 5.0, (4.9, 5.0, 5.2),
            {"recall": [DialPoint(level, 1.0, (0.9, 1.0)) for level in (2, 4, 8)]},
        ),
        differences=tuple(
            Difference(
                a, b, 3, difference(list(found[a].values()), list(found[b].values())),
                {task: difference([found[a][task]], [found[b][task]]) for task in found[a]},
            )
            for a, b in pairs
        ),
        failures=tuple(failures),
        jobs=1,
        how_decoded={"prompts": 2, "prompt_tokens": 60.5, "new_tokens": 32},
        environment={"device": "cpu", "processor": "A processor"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    """Two cells that cannot be told apart, one behind them, and a run that failed."""
    tmp_path = tmp_path_factory.mktemp("made-up")
    failure = Failure("lost", 0, "training diverged: <nan>", "Traceback", tmp_path / "logs" / "lost-seed-0.log")
    shares = {"mamba2": (0.9, 0.8), "gla": (0.9, 0.81), "retnet": (0.9, 0.4)}
    return made_up(tmp_path / "mixers", shares, [failure])
