"""What a run says while it runs: to a terminal, to a log file, or to nobody. Imports rich, never torch."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from linearize.pipeline.streams import FallsSilent
from linearize.report.sections import read_sections, section_table
from linearize.report.tables import mean_error, retention_table, verdict
from linearize.wording import change, duration, percent, quantity, short_count

if TYPE_CHECKING:
    from linearize.plan.plan import Plan, StagePlan
    from linearize.recipe.load import LoadedRecipe

EvaluationProgress = Callable[[str, int, int], None]
"""Called with what is running, how many questions are done and how many there are."""

PLAIN_WIDTH = 120
"""Columns of tables in a log file, which has no width of its own."""


class Display(Protocol):
    """Who is told how a run goes. Stage numbers count from 0."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def warn(self, text: str) -> None:
        """Something that the user should look at, though the run goes on."""
        ...

    def plan(self, recipe: LoadedRecipe, plan: Plan, model: Any = None, device: Any = None) -> None:
        """What the run will do. ``model`` and ``device`` are None where only the plan was asked for."""
        ...

    def stage_started(self, number: int, planned: StagePlan) -> None:
        """A stage starts, or goes on from a checkpoint."""
        ...

    def step(self, step: int, line: Mapping[str, Any]) -> None:
        """``step`` optimizer steps of the stage are done; ``line`` is that of metrics.jsonl."""
        ...

    def stage_finished(self, number: int, summary: Mapping[str, Any]) -> None:
        """A stage is done; without ``stage_started`` before, an earlier process had done it."""
        ...

    def evaluation(self) -> AbstractContextManager[EvaluationProgress | None]:
        """Spans the evaluation; gives what is called with its progress."""
        ...

    def counting(self, what: str) -> AbstractContextManager[EvaluationProgress | None]:
        """Something that counts begins; see ``evaluation``."""
        ...

    def results(self, results: Mapping[str, Any], page: Path) -> None:
        """The content of results.json, and where the report page lies."""
        ...

    def close(self) -> None:
        """The run is over, whatever way it ended."""
        ...


class SilentDisplay:
    """Prints nothing; notes and warnings go to the logger "linearize", whose warnings reach stderr by default."""

    def __init__(self) -> None:
        self._log = logging.getLogger("linearize")

    def note(self, text: str) -> None:
        """Logs it as information."""
        self._log.info(text)

    def warn(self, text: str) -> None:
        """Logs it as a warning."""
        self._log.warning(text)

    def plan(self, recipe: LoadedRecipe, plan: Plan, model: Any = None, device: Any = None) -> None:
        """Logs the caveats as warnings, and what mixers remark as information."""
        for caveat in plan.caveats:
            self.warn(caveat)
        for remark in plan.remarks():
            self.note(remark)

    def stage_started(self, number: int, planned: StagePlan) -> None:
        """Says nothing."""

    def step(self, step: int, line: Mapping[str, Any]) -> None:
        """Says nothing."""

    def stage_finished(self, number: int, summary: Mapping[str, Any]) -> None:
        """Says nothing."""

    def evaluation(self) -> AbstractContextManager[EvaluationProgress | None]:
        """Wants no progress."""
        return nullcontext()

    def counting(self, what: str) -> AbstractContextManager[EvaluationProgress | None]:
        """Not shown."""
        return nullcontext()

    def results(self, results: Mapping[str, Any], page: Path) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Has nothing to close."""


class ConsoleDisplay:
    """Tables and progress bars on a terminal; elsewhere plain lines, one per logged step at most every few seconds.

    Args:
        console: where to; the default is stdout.
        brief: only progress and warnings, without plan, notes and results: for one run of many.
        seconds_between_lines: least time between two plain progress lines; a stage's last line is always written.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        brief: bool = False,
        seconds_between_lines: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or make_console()
        self._brief = brief
        self._pause = seconds_between_lines
        self._clock = clock
        self._last_line = float("-inf")
        self._num_stages: int | None = None
        self._running: tuple[int, StagePlan] | None = None
        self._first_step: tuple[int, float] | None = None
        self._bar: tuple[Progress, TaskID] | None = None

    def note(self, text: str) -> None:
        """One line, unless brief."""
        if not self._brief:
            self._line(text)

    def warn(self, text: str) -> None:
        """One line that stands out."""
        self._line(f"warning: {text}", style="yellow")

    def plan(self, recipe: LoadedRecipe, plan: Plan, model: Any = None, device: Any = None) -> None:
        """The plan's tables, caveats and remarks, unless brief."""
        self._num_stages = len(plan.stages)
        if not self._brief:
            # It knows what a recipe is made of, which takes pydantic; --help has no recipe.
            from linearize.plan.table import plan_tables

            self.console.print(plan_tables(recipe, plan, model, device))
            for caveat in plan.caveats:
                self.warn(caveat)
            for remark in plan.remarks():
                self.note(f"note: {remark}")

    def stage_started(self, number: int, planned: StagePlan) -> None:
        """Starts the bar."""
        self._running, self._first_step = (number, planned), None
        self._last_line = float("-inf")
        self._start_bar(self._stage(number, planned.stage.name), planned.stage.steps)

    def step(self, step: int, line: Mapping[str, Any]) -> None:
        """Moves the bar, or writes a line when the last one is old enough."""
        assert self._running is not None, "step() comes after stage_started()"
        number, planned = self._running
        steps = planned.stage.steps
        if self._bar is not None:
            self._move_bar(
                step, f"{_bar_numbers(step, steps, line)} {duration(self._seconds_left(step, steps, line))} left"
            )
        elif step == steps or self._is_due():
            self._line(f"{self._stage(number, planned.stage.name)}  {step_numbers(step, steps, line)}")

    def stage_finished(self, number: int, summary: Mapping[str, Any]) -> None:
        """One line; it says so when an earlier process had done the stage."""
        self._stop_bar()
        found = self._running is None
        self._running = None
        how = "was done before" if found else "done"
        self._line(f"{self._stage(number, summary['name'])}  {how}: {stage_outcome(summary)}")

    def evaluation(self) -> AbstractContextManager[EvaluationProgress]:
        """A bar over all questions, and one line at the end."""
        return self.counting("evaluation")

    @contextmanager
    def counting(self, what: str) -> Iterator[EvaluationProgress]:
        """Progress of something that counts; gives what is called with (what is running, done, in all)."""
        started = self._clock()
        self._last_line = float("-inf")
        self._start_bar(what, None)

        def progress(label: str, done: int, total: int) -> None:
            if self._bar is not None:
                self._move_bar(done, f"{done:,}/{total:,}  {label}", total)
            elif done == total or self._is_due():
                self._line(f"{what}  {done:>{len(f'{total:,}')},}/{total:,}  {label}".rstrip())

        try:
            yield progress
        finally:
            self._stop_bar()
        self._line(f"{what}  done in {duration(self._clock() - started)}")

    def results(self, results: Mapping[str, Any], page: Path) -> None:
        """The retention table, what evaluators show, a sentence, and where the report lies; brief: the sentence."""
        if results["tasks"] and not self._brief:
            self.console.print()
            self.console.print(retention_table(results))
            for section in read_sections(results).values():
                self.console.print(section_table(section))
        self._line(verdict(results))
        if self._brief:
            return
        if results.get("kl") is not None:
            self._line(
                f"KL to the teacher: {quantity(results['kl'])} nats per answer token; "
                f"both prefer the same token at {percent(results['top1_agreement'])} of them."
            )
        self._line(f"report: {page}")

    def close(self) -> None:
        """Takes the bar away, so that the terminal has its cursor back."""
        self._stop_bar()

    def _stage(self, number: int, name: str) -> str:
        return f"stage {number + 1}{f'/{self._num_stages}' if self._num_stages else ''} {name}"

    def _seconds_left(self, step: int, steps: int, line: Mapping[str, Any]) -> float:
        now = self._clock()
        if self._first_step is None:
            self._first_step = (step, now)
            # The stage may have begun in an earlier process, so its steps say nothing about this process's clock yet.
            return float((steps - step) * line["tokens"] / step / max(line["tokens_per_second"], 1e-9))
        first_step, then = self._first_step
        return (steps - step) * (now - then) / max(step - first_step, 1)

    def _is_due(self) -> bool:
        return self._clock() - self._last_line >= self._pause

    def _line(self, text: str, style: str = "") -> None:
        self._last_line = self._clock()
        self.console.print(Text(text, style=style), soft_wrap=True, highlight=False)

    def _start_bar(self, label: str, total: int | None) -> None:
        self._stop_bar()
        if not self.console.is_terminal:
            return
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=max(8, min(30, self.console.width - 75))),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self.console, transient=True, refresh_per_second=2,
        )  # fmt: skip
        self._bar = (bar, bar.add_task(label, total=total, numbers=""))
        bar.start()

    def _move_bar(self, done: int, numbers: str, total: int | None = None) -> None:
        assert self._bar is not None
        bar, task = self._bar
        bar.update(task, completed=done, total=total, numbers=numbers)

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; where that is no terminal, wide enough for the tables.

    What cannot be written there is lost: no run fails because of its console.
    """
    stream = cast(IO[str], FallsSilent(sys.stderr if stderr else sys.stdout))
    console = Console(file=stream)
    return console if console.is_terminal else Console(file=stream, width=max(PLAIN_WIDTH, console.width))


def step_numbers(step: int, steps: int, line: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl in fixed columns, units printed; the site error is the mean over sites."""
    error = mean_error(line.get("sites"))
    return (
        f"step {step:>{len(str(steps))}}/{steps}  loss {quantity(line['loss']):<8}  lr {line['lr']:.1e}  "
        f"tok/s {line['tokens_per_second']:>9,.0f}  mem {line['memory_gib']:>5.1f} GiB"
        f"{'' if error is None else f'  site error {quantity(error)}'}"
    )


def stage_outcome(summary: Mapping[str, Any]) -> str:
    """A stage's done.json in one line; site errors are relative to the variance of the teacher's output."""
    text = (
        f"{summary['steps']:,} steps in {duration(summary['seconds'])}, {short_count(summary['tokens'])} tokens, "
        f"loss {change(summary['first_loss'], summary['last_loss'])}"
    )
    sites = summary.get("sites")
    if sites:
        worst = max(sites, key=lambda site: float(sites[site]))
        mean = change(mean_error(summary.get("first_sites")), mean_error(sites))
        text += f", site error {mean} of the variance (worst: site {worst}, {quantity(sites[worst])})"
    return text


def _bar_numbers(step: int, steps: int, line: Mapping[str, Any]) -> str:
    return (
        f"{step}/{steps} loss {quantity(line['loss'])} {short_count(line['tokens_per_second'])} tok/s "
        f"{line['memory_gib']:.1f} GiB"
    )
