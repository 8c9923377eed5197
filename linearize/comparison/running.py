"""Running what is left of a comparison: every run in a process of its own, one after another. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearize.comparison.cells import Comparison
from linearize.comparison.folder import ComparisonFolder
from linearize.display import Display
from linearize.errors import RunError
from linearize.evaluate.store import read_json, write_json
from linearize.recipe.load import fingerprint

LOG_LINES = 12
"""Lines at the end of a log that are shown of a process that could not say why it ended."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not reach its end.

    Attributes:
        text: why, as a person reads it.
        details: a traceback or the end of the log; "" where the text says all.
    """

    cell: str
    seed: int
    text: str
    details: str
    log: Path


def refuse_launcher() -> None:
    """A comparison starts its processes itself.

    Raises:
        RunError: torchrun or the like has started several of this one.
    """
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise RunError(
            f"{launched} processes were launched, but a comparison starts a process for each run itself; "
            "start it without torchrun"
        )


def run_cells(comparison: Comparison, folder: ComparisonFolder, display: Display, *, show: bool) -> list[Failure]:
    """Runs every cell and seed that is not finished; a failing one leaves the others alone.

    Args:
        show: the runs' own progress goes to stdout, not to their logs.
    """
    failures: list[Failure] = []
    runs = list(comparison.runs())
    for number, (cell, seed) in enumerate(runs, start=1):
        label = f"[{number}/{len(runs)}] {cell.name}, seed {seed}"
        if folder.is_finished(cell, seed):
            display.note(f"{label}: was done before")
            continue
        display.note(label)
        job = {
            "kind": "run", "tables": cell.tables(seed), "folder": str(folder.run(cell, seed).path),
            "failure": str(folder.failure(cell, seed)), "teacher_answers": str(folder.teacher),
        }  # fmt: skip
        told = _work(job, folder.log(cell, seed), show=show)
        # A process may still crash while it ends, with nothing left to do.
        if told is not None and not folder.is_finished(cell, seed):
            failures.append(Failure(cell.name, seed, *told, folder.log(cell, seed)))
            display.warn(f"{cell.name}, seed {seed} failed: {told[0]}")
    return failures


def measure_speed(
    comparison: Comparison, folder: ComparisonFolder, display: Display, *, show: bool
) -> Mapping[str, Any] | None:
    """The content of decode.json for all cells with a student, measured now unless it is there; None without any.

    A measurement that is there counts as long as the same models were measured in the same way.
    """
    options = comparison.options
    finished = [(cell.name, folder.run(cell, seed)) for cell, seed in folder.finished(comparison)]
    # Speed does not depend on what was learnt, so one student of each cell is enough.
    runs = dict(reversed(finished))
    students = {cell.name: str(runs[cell.name].student) for cell in comparison.cells if cell.name in runs}
    if not students or not options.decode_tokens:
        return None
    tables = comparison.cells[0].tables(0)
    how = {"new_tokens": options.decode_tokens, "rounds": options.decode_rounds}
    key = fingerprint([comparison.yardstick(), how, {name: read_json(runs[name].done) for name in students}])
    found = read_json(folder.decode)
    if isinstance(found, dict) and found.get("key") == key:
        return found
    log, failure = folder.path / "logs" / "decode.log", folder.path / "logs" / "decode.failure.json"
    job = {
        "kind": "decode", "tables": tables, "students": students, "key": key, "result": str(folder.decode),
        "failure": str(failure), **how,
    }  # fmt: skip
    told = _work(job, log, show=show)
    found = read_json(folder.decode)
    if isinstance(found, dict) and found.get("key") == key:
        for name, text in found["failed"].items():
            display.warn(f"decoding speed of {name} was not measured: {text}")
        return found
    display.warn(f"decoding speed was not measured: {told[0] if told else 'its process wrote nothing'}")
    return None


def _work(job: Mapping[str, Any], log: Path, *, show: bool) -> tuple[str, str] | None:
    """Does a job in a process of its own; what went wrong and its details, None when nothing did."""
    failure, file = Path(job["failure"]), log.with_suffix(".job.json")
    failure.unlink(missing_ok=True)
    write_json(file, job)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "linearize.comparison.worker", str(file)]
    with log.open("w", encoding="utf-8") as stream:
        # Nothing is written to stdin: the worker takes its end for this process's.
        worker = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=None if show else stream, stderr=stream
        )
        try:
            status = worker.wait()
        except BaseException:
            worker.kill()
            worker.wait()
            raise
    file.unlink()
    if status == 0:
        return None
    told = read_json(failure)
    if isinstance(told, dict):
        return told["text"], told["details"]
    how = f"signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
    memory = "; the system ends processes so when memory runs out" if status == -signal.SIGKILL else ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return f"its process ended with {how}{memory}", "\n".join(lines)
