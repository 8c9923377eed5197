"""What a stage has done so far, and the lines of metrics.jsonl that tell of it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linearize.distill.memory import peak_memory_gib
from linearize.distill.objectives import Measured
from linearize.errors import RunError
from linearize.files.whole_file import write_text

FILE = "metrics.jsonl"


@dataclass(slots=True)
class Progress:
    """Plain numbers of a stage; saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        tokens: valid tokens seen, over all processes.
        seconds: spent in the loop, over all processes that were killed in between.
        first_loss, first_sites: of the first optimizer step.
        last_loss, last_sites: mean over the latest logged steps.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    first_sites: dict[str, float] = field(default_factory=dict)
    last_sites: dict[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """JSON-able; ``Progress(**state)`` gives it back."""
        return asdict(self)


class StageLog:
    """Gathers what steps measured and writes it out every so often; only then is a GPU waited for.

    Args:
        folder: of the stage. Lines of steps after ``progress.step`` are dropped: those steps will be taken again.
        writes: False in all but one of several processes.
    """

    def __init__(self, folder: Path, progress: Progress, *, writes: bool = True) -> None:
        self.path = folder / FILE
        self.progress = progress
        self._window: list[Measured] = []
        self._started = time.perf_counter() - progress.seconds
        self._mark = (time.perf_counter(), progress.tokens)
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            _keep_lines(self.path, progress.step)

    def add(self, measured: Measured, tokens: int) -> None:
        """Counts one optimizer step."""
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.seconds = time.perf_counter() - self._started
        self._window.append(measured)
        if self.progress.step == 1:
            self.progress.first_loss, self.progress.first_sites = _summary([measured])

    def line(self, lr: float) -> dict[str, Any]:
        """The means since the last line, as a line of metrics.jsonl."""
        loss, sites = _summary(self._window)
        self.progress.last_loss, self.progress.last_sites = loss, sites
        now, before = (time.perf_counter(), self.progress.tokens), self._mark
        self._mark, self._window = now, []
        line: dict[str, Any] = {
            "step": self.progress.step,
            "loss": loss,
            "lr": lr,
            "tokens": self.progress.tokens,
            "tokens_per_second": (now[1] - before[1]) / max(now[0] - before[0], 1e-9),
            "memory_gib": peak_memory_gib(),
        }
        return line | ({"sites": sites} if sites else {})

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            RunError: the disk is full or not writable.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error}. Make room or fix the permissions, then type the same command again"
            ) from error


def _summary(window: Sequence[Measured]) -> tuple[float, dict[str, float]]:
    """Mean loss of the steps, and each site's error over all of them."""
    total = Measured()
    for measured in window:
        total.merge(measured)
    sites = {str(index): error.value() for index, error in sorted(total.sites.items())}
    return float(total.loss) / max(len(window), 1), sites


def _keep_lines(path: Path, step: int) -> None:
    """Drops lines of later steps, and damaged ones, such as a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if int(json.loads(text)["step"]) <= step:
                kept.append(text)
    write_text(path, "".join(f"{text}\n" for text in kept))
