"""Running what is left of a comparison: every run in a process of its own, ``jobs`` at a time. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearize.comparison.cells import Cell, Comparison
from linearize.comparison.folder import ComparisonFolder
from linearize.errors import RunError
from linearize.files.json_file import read_json, write_json
from linearize.files.names import fingerprint
from linearize.pipeline.display import Display

LOG_LINES = 12
"""Lines at the end of a log that are shown of a process that could not say why it ended."""
POLL_SECONDS = 0.1
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


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


def run_cells(
    comparison: Comparison, folder: ComparisonFolder, display: Display, *, show: bool, jobs: int = 1
) -> list[Failure]:
    """Runs every cell and seed that is not finished; a failing one leaves the others alone.

    Args:
        show: the runs' own progress goes to stdout, not to their logs.
        jobs: runs at a time. More than one get the visible GPUs in turn, and share the cores.
    """
    waiting: list[_Run] = []
    total = len(list(comparison.runs()))
    for number, (cell, seed) in enumerate(comparison.runs(), start=1):
        run = _Run(cell, seed, f"[{number}/{total}] {cell.name}, seed {seed}")
        if folder.is_finished(cell, seed):
            display.note(f"{run.label}: was done before")
        else:
            waiting.append(run)
    failures: list[Failure] = []
    working: dict[int, tuple[_Run, _Worker]] = {}
    try:
        while waiting or working:
            for slot in [slot for slot in range(jobs) if slot not in working][: len(waiting)]:
                run = waiting.pop(0)
                display.note(run.label)
                environment = share_of_the_machine(slot, jobs) if jobs > 1 else {}
                working[slot] = run, _Worker(run.job(folder), folder.log(run.cell, run.seed), environment, show=show)
            time.sleep(POLL_SECONDS)
            for slot in [slot for slot, (_, worker) in working.items() if worker.has_ended()]:
                run, worker = working.pop(slot)
                told = worker.failure()
                # A process may still crash while it ends, with nothing left to do.
                if told is not None and not folder.is_finished(run.cell, run.seed):
                    failures.append(Failure(run.cell.name, run.seed, *told, worker.log))
                    display.warn(f"{run.cell.name}, seed {run.seed} failed: {told[0]}")
                elif jobs > 1:
                    display.note(f"{run.label}: done")
    except BaseException:
        for _, worker in working.values():
            worker.kill()
        raise
    return failures


@dataclass(frozen=True, slots=True)
class _Run:
    """One cell in one seed, and what it is called in what is printed."""

    cell: Cell
    seed: int
    label: str

    def job(self, folder: ComparisonFolder) -> dict[str, Any]:
        """What its process is told."""
        return {
            "kind": "run", "tables": self.cell.tables(self.seed), "folder": str(folder.run(self.cell, self.seed).path),
            "failure": str(folder.failure(self.cell, self.seed)), "teacher_answers": str(folder.teacher),
        }  # fmt: skip


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
    worker = _Worker(job, log, {}, show=show)
    try:
        worker.process.wait()
    except BaseException:
        worker.kill()
        raise
    return worker.failure()


def share_of_the_machine(slot: int, jobs: int) -> dict[str, str]:
    """Environment of the run in one of ``jobs`` places: its GPU and its share of cores."""
    listed = os.environ.get(VISIBLE_GPUS)
    gpus = _all_gpus() if listed is None else [name for name in listed.split(",") if name]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    return {"OMP_NUM_THREADS": threads} | ({VISIBLE_GPUS: gpus[slot % len(gpus)]} if gpus else {})


def _all_gpus() -> list[str]:
    """The numbers of the machine's NVIDIA GPUs, as their driver tells without torch."""
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


class _Worker:
    """A process that does one job."""

    def __init__(self, job: Mapping[str, Any], log: Path, environment: Mapping[str, str], *, show: bool) -> None:
        self.log, self._told, self._file = log, Path(job["failure"]), log.with_suffix(".job.json")
        self._told.unlink(missing_ok=True)
        write_json(self._file, job)
        path = os.pathsep.join(filter(None, sys.path))
        with log.open("w", encoding="utf-8") as stream:
            # Nothing is written to stdin: the worker takes its end for this process's.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "linearize.comparison.worker", str(self._file)],
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdin=subprocess.PIPE,
                stdout=None if show else stream,
                stderr=stream,
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def failure(self) -> tuple[str, str] | None:
        """What went wrong in a process that has ended, and its details; None when nothing did."""
        self._file.unlink(missing_ok=True)
        status = self.process.wait()
        if status == 0:
            return None
        told = read_json(self._told)
        if isinstance(told, dict):
            return told["text"], told["details"]
        how = f"signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
        memory = "; the system ends processes so when memory runs out" if status == -signal.SIGKILL else ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return f"its process ended with {how}{memory}", "\n".join(lines)
