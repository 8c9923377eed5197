"""A run folder as the report reads it; whatever is missing or half written reads as absent."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearize.data.bad_record_file import read_bad_records
from linearize.errors import RunError
from linearize.files.json_file import read_json, read_sealed
from linearize.files.run_folder import COMPARISON


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage.

    Attributes:
        number: from 1, as in the folder's name.
        done: the content of done.json; None while the stage is not finished.
        metrics: its logged steps, ascending.
    """

    number: int
    name: str
    done: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss), from the first step on."""
        points = [(int(line["step"]), float(line["loss"])) for line in self.metrics]
        first = (self.done or {}).get("first_loss")
        return [(1, float(first)), *points] if first is not None and (not points or points[0][0] > 1) else points

    def site_errors(self) -> list[tuple[int, dict[int, float]]]:
        """(step, {site: error relative to the target's variance}) from the first step on; [] for other objectives."""
        points = [(int(line["step"]), _by_site(line["sites"])) for line in self.metrics if line.get("sites")]
        first = (self.done or {}).get("first_sites")
        return [(1, _by_site(first)), *points] if first and (not points or points[0][0] > 1) else points


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything in a run folder that a report is made of.

    Attributes:
        recipe_text: the resolved recipe as it stands in the folder; "" without one.
        evaluation: the evaluation's summary; None when the run was not evaluated.
        bad_records: the lines of its bad_records.jsonl, each record once.
        examples: questions with both models' answers; paths of images are relative to ``path``/evaluation.
        changes: of the recipe while a stage was at work: its name, the step after which, and what changed.
    """

    path: Path
    recipe_text: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: Sequence[StageRecord]
    evaluation: Mapping[str, Any] | None
    examples: Sequence[Mapping[str, Any]]
    bad_records: Sequence[Mapping[str, Any]] = ()
    changes: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The run's name in its recipe, or else its folder's."""
        return str(self.recipe.get("run", {}).get("name") or self.path.resolve().name)


def read_run(path: Path) -> RunRecord:
    """Reads a run folder, finished or not.

    Raises:
        RunError: there is no such folder, it is no run's, or it is a comparison's, which has a report of its own.
    """
    if (path / COMPARISON).exists():
        raise RunError(
            f"{path} holds a comparison, not a run; its `linearize compare`, typed again, makes its report anew"
        )
    if not path.is_dir():
        raise RunError(f"a report of {path} was asked for, but there is no such run folder; give the folder of a run")
    if not (path / "recipe.toml").exists():
        raise RunError(
            f"expected the folder of a run, with its recipe.toml; {path} has none. Give a folder such as runs/NAME"
        )
    try:
        recipe_text = (path / "recipe.toml").read_text(encoding="utf-8")
        recipe = tomllib.loads(recipe_text)
    except (OSError, ValueError):
        recipe_text, recipe = "", {}
    evaluation = read_sealed(path / "evaluation" / "summary.json")
    return RunRecord(
        path=path,
        recipe_text=recipe_text,
        recipe=recipe,
        environment=read_json(path / "environment.json") or {},
        stages=_read_stages(path / "stages"),
        evaluation=evaluation,
        examples=read_json(path / "evaluation" / "examples.json") or [],
        bad_records=read_bad_records(path),
        changes=read_json(path / "changes.json") or [],
    )


def _read_stages(folder: Path) -> list[StageRecord]:
    stages = []
    for path in folder.iterdir() if folder.is_dir() else ():
        number, _, name = path.name.partition("-")
        if path.is_dir() and number.isdigit():
            stages.append(StageRecord(int(number), name, read_sealed(path / "done.json"), _read_metrics(path)))
    return sorted(stages, key=lambda stage: stage.number)


def _read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged steps; a step that was repeated after a kill counts as it went the last time."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            metrics = json.loads(line)
            by_step[int(metrics["step"])] = {**metrics, "loss": float(metrics["loss"])}
        except (ValueError, KeyError, TypeError):
            continue  # a damaged line, such as one that a kill cut short
    return [by_step[step] for step in sorted(by_step)]


def _by_site(errors: Mapping[str, float]) -> dict[int, float]:
    return {site: error for site, error in sorted((int(name), float(value)) for name, value in errors.items())}
