"""The folder of a comparison: what lies where, and no mixing of two comparisons. Imports no torch.

runs/<name>/
  comparison.json            what all cells share, and each cell's recipe
  cells/<cell>/seed-<n>/     a run folder like any other
  timing/                    with compare.seconds: the short runs by which steps were timed, a folder like this one
  teacher/                   what the teacher answered, for all runs
  logs/                      what each run printed, and why it failed if it did
  decode.json                milliseconds per token of teacher and students
  report/                    index.html, compare.md, compare.csv, compare.json and the charts
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from linearize.comparison.cells import Cell, Comparison
from linearize.errors import RunError
from linearize.files.json_file import read_json, write_json
from linearize.files.run_folder import COMPARISON, FORMAT, RunFolder, differences, refuse_newer


class ComparisonFolder:
    """Paths below ``runs/<name>`` of the current directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / COMPARISON
        self.teacher = path / "teacher"
        self.decode = path / "decode.json"
        self.report = path / "report"
        self.results = self.report / "compare.json"

    def run(self, cell: Cell, seed: int) -> RunFolder:
        """The run folder of one cell and seed."""
        return RunFolder(self.path / "cells" / cell.name / f"seed-{seed}")

    def log(self, cell: Cell, seed: int) -> Path:
        """What the run's process printed."""
        return self.path / "logs" / f"{cell.name}-seed-{seed}.log"

    def failure(self, cell: Cell, seed: int) -> Path:
        """Why the run's process ended early; there is no such file when it did not."""
        return self.path / "logs" / f"{cell.name}-seed-{seed}.failure.json"

    def is_finished(self, cell: Cell, seed: int) -> bool:
        """Whether a run reached its end and is this recipe's; a worker says what is wrong with any other one."""
        run = self.run(cell, seed)
        try:
            before = tomllib.loads(run.recipe.read_text(encoding="utf-8"))
            return run.is_whole() and cell.checked.recipe.completed(before) == cell.tables(seed)
        except (OSError, ValueError):
            return False

    def finished(self, comparison: Comparison) -> list[tuple[Cell, int]]:
        """The runs that reached their end, in the comparison's order."""
        return [(cell, seed) for cell, seed in comparison.runs() if self.is_finished(cell, seed)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the comparison for this process.

        Raises:
            RunError: another process has it, or the folder is a run's.
        """
        if (self.path / "recipe.toml").exists():
            raise RunError(f"{self.path} holds a run, not a comparison; give the comparison another compare.name")
        with RunFolder(self.path).locked():
            yield

    def claim(self, comparison: Comparison, jobs: int = 1) -> int:
        """Writes down what is compared, or makes sure that the folder's comparison is the same.

        Cells may come and go and seeds may be added; a cell that is there keeps its recipe.

        Args:
            jobs: runs at a time from now on.

        Returns:
            The largest number of runs at a time that this folder has seen: their speeds are not those of runs alone.

        Raises:
            RunError: the folder holds another comparison; shows every difference.
        """
        cells = {cell.name: cell.tables(0) for cell in comparison.cells}
        now = {"shared": comparison.yardstick(), "cells": cells}
        before = read_json(self.manifest) if self.manifest.exists() else {"shared": now["shared"], "cells": {}}
        if not isinstance(before, dict) or not {"shared", "cells"} <= before.keys():
            raise RunError(f"{self.manifest} cannot be read; start with --fresh, which keeps the old folder beside")
        refuse_newer(self.manifest, before)
        recipes = {cell.name: cell.checked.recipe for cell in comparison.cells}
        known = {name: recipes[name].completed(before["cells"][name]) for name in cells if name in before["cells"]}
        shared: dict[str, Any] = before["shared"]
        if known:
            some = next(iter(known))  # any cell: what all share stands in each one's tables
            whole = recipes[some].completed({**before["cells"][some], **shared})
            shared = {key: whole[key] for key in shared}
        changes = list(differences(shared, now["shared"]))
        if not changes:  # otherwise every cell would say the same again
            changes = [
                f"cell '{name}': {change}"
                for name, tables in known.items()
                for change in differences(tables, cells[name])
            ]
        if changes:
            raise RunError(
                f"{self.path} holds another comparison; what changed:\n"
                + "\n".join(f"  - {change}" for change in changes)
                + "\nUndo the change, give the comparison another compare.name, or start over with --fresh, "
                "which keeps the old folder beside"
            )
        most = max(jobs, before.get("jobs", 1))
        kept = {"shared": now["shared"], "cells": {**before["cells"], **cells}, "jobs": most}
        write_json(self.manifest, {"format": FORMAT, **kept})
        return most
