"""The comparison's charts: quality against cost, quality against difficulty, losses; one look per cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from linearize.comparison.findings import CellFinding, ComparisonResult
from linearize.plan.table import byte_size
from linearize.report.plots import INK, STYLE, TEACHER, WIDTH, panels, running_mean, thinned

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B5B00", "#2B333D")
MARKS = ("o", "D", "^", "v", "s", "P", "X", "*", "<", ">")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
TEACHER_NAME = "teacher"
MEMORY_TOKENS = 4096
"""Length of the sequence whose memory stands in the chart of costs."""
MOST_BANDS = 2
"""Cells up to which each line has a band of its interval; more of them would hide the lines."""
LOG_SPAN = 8
"""Values further apart than this factor stand on a logarithmic axis."""
LEGEND_ROW = 0.19
"""Inches."""


def cost_chart(result: ComparisonResult) -> Figure | None:
    """What is kept on average against three costs, a panel each; None where nothing is kept or known."""
    kept = [
        (look, cell) for look, cell in zip(looks(result.cells), result.cells, strict=True) if cell.average is not None
    ]
    if not kept or result.teacher is None:
        return None
    costs: list[tuple[str, Callable[[CellFinding], float | None], float | None]] = [
        ("decode ms per token", lambda cell: cell.decode_ms, result.teacher.decode_ms),
        (
            f"memory of {MEMORY_TOKENS:,} tokens", memory_bytes,
            float(MEMORY_TOKENS * result.teacher.cache_bytes_per_token),
        ),
        ("training tokens per second", lambda cell: cell.tokens_per_second, None),
    ]  # fmt: skip
    known = [cost for cost in costs if any(cost[1](cell) is not None for _, cell in kept)]
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(known), height=2.9, sharey=True)
        for axes, (title, cost, of_teacher) in zip(places, known, strict=True):
            if of_teacher is not None:
                axes.plot([of_teacher], [1.0], "s", color=TEACHER, markersize=8, label=TEACHER_NAME, linestyle="none")
            axes.axhline(1.0, color=TEACHER, linewidth=1, linestyle=(0, (4, 3)))
            for look, cell in kept:
                _point(axes, look, cell, cost(cell))
            axes.set_title(title)
            axes.set_xlabel("more is better" if of_teacher is None and "second" in title else "less is better")
            _cost_axis(axes, [x for x in [of_teacher, *(cost(cell) for _, cell in kept)] if x], "memory" in title)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        places[0].set_ylabel("kept on average")
        _legend(figure, places)
    return figure


def difficulty_chart(result: ComparisonResult) -> Figure | None:
    """A panel per dial: what every cell keeps, and the teacher's own right answers; None where no dial was turned."""
    teacher = result.teacher
    tasks = [task for task in teacher.dials if teacher.dials[task]] if teacher else []
    if not tasks or teacher is None:
        return None
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(tasks), height=2.7, sharey=True)
        for axes, task in zip(places, tasks, strict=True):
            rows = teacher.dials[task]
            axes.plot(
                [row.difficulty for row in rows], [row.value for row in rows], linestyle=(0, (4, 3)), color=TEACHER,
                linewidth=1.5, label="right answers of the teacher",
            )  # fmt: skip
            for look, cell in zip(looks(result.cells), result.cells, strict=True):
                _dial(axes, look, cell, task, band=len(result.cells) <= MOST_BANDS)
            axes.set_title(task)
            axes.set_xlabel("difficulty")
            axes.set_ylim(
                -0.03, 0.05 + max([1.0, *(p.value for cell in result.cells for p in cell.dials.get(task, ()))])
            )
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        places[0].set_ylabel("kept of the teacher's")
        _legend(figure, places)
    return figure


def loss_chart(result: ComparisonResult) -> Figure | None:
    """A panel per stage: the running mean of every run's loss; None when nothing was logged."""
    curves: dict[str, list[tuple[int, list[tuple[int, float]]]]] = {}
    for number, cell in enumerate(result.cells):
        for stages in cell.stages:
            for stage in stages:
                if points := stage.losses():
                    curves.setdefault(stage.name, []).append((number, points))
    if not curves:
        return None
    look = looks(result.cells)
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(curves), height=2.4)
        for axes, (name, drawn) in zip(places, curves.items(), strict=True):
            seen: set[int] = set()
            values: list[float] = []
            for number, points in drawn:
                steps, losses = zip(*thinned(points), strict=True)
                smooth = running_mean(losses)
                values += smooth
                axes.plot(
                    steps, smooth, color=look[number].colour, linestyle=look[number].line, linewidth=1.4,
                    alpha=1.0 if number not in seen else 0.45,
                    marker=look[number].mark if len(steps) < 3 else None,
                    label=None if number in seen else result.cells[number].name,
                )  # fmt: skip
                seen.add(number)
            if min(values) > 0 and max(values) > LOG_SPAN * min(values):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(name)
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        places[0].set_ylabel("loss")
        _legend(figure, places)
    return figure


def memory_bytes(cell: CellFinding) -> float:
    """State and kept keys and values of one sequence of ``MEMORY_TOKENS`` tokens."""
    return float(cell.costs.state_bytes + MEMORY_TOKENS * cell.costs.cache_bytes_per_token)


@dataclass(frozen=True, slots=True)
class Look:
    """How a cell is drawn, everywhere."""

    colour: str
    mark: str
    line: str | tuple[float, tuple[float, ...]]
    is_hollow: bool

    @property
    def fill(self) -> str:
        """The colour inside its mark."""
        return "white" if self.is_hollow else self.colour


def looks(cells: Sequence[CellFinding]) -> list[Look]:
    """Each cell's look. Where mixers and something else are varied, one mixer has one colour and one mark."""
    mixers = [tuple(change for change in cell.changes if _is_of_mixer(change)) for cell in cells]
    others = [tuple(change for change in cell.changes if not _is_of_mixer(change)) for cell in cells]
    crossed = min(len(_distinct(mixers)), len(_distinct(others))) > 1
    found = []
    for number in range(len(cells)):
        kind, variant = number, number // len(COLOURS)
        if crossed:
            kind, variant = _distinct(mixers).index(mixers[number]), _distinct(others).index(others[number])
        found.append(
            Look(COLOURS[kind % len(COLOURS)], MARKS[kind % len(MARKS)], LINES[variant % len(LINES)], variant % 2 == 1)
        )
    return found


def _is_of_mixer(change: tuple[str, Any]) -> bool:
    return change[0].startswith("student.mixer")


def _distinct(items: Sequence[Any]) -> list[Any]:
    return [item for number, item in enumerate(items) if item not in items[:number]]


def _point(axes: Axes, look: Look, cell: CellFinding, x: float | None) -> None:
    if x is None or cell.average is None:
        return
    value, (low, high) = cell.average.value, cell.average.interval
    axes.errorbar(
        [x], [value], yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt=look.mark,
        color=look.colour, markerfacecolor=look.fill, markersize=7, elinewidth=1.2, capsize=3, label=cell.name,
    )  # fmt: skip


def _cost_axis(axes: Axes, values: Sequence[float], is_bytes: bool) -> None:
    if max(values) > LOG_SPAN * min(values):
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.8, max(values) * 1.8)
    else:
        axes.set_xlim(0, 1.12 * max(values))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if is_bytes:
        axes.xaxis.set_major_formatter(lambda value, _: byte_size(round(value)).replace(".0 ", " "))
        if axes.get_xscale() == "log":
            low, high = axes.get_xlim()
            powers = [4.0**power for power in range(40) if low <= 4.0**power <= high]
            axes.set_xticks(powers[:: -(-len(powers) // 4) or 1])
            axes.xaxis.set_minor_locator(NullLocator())
    elif axes.get_xscale() != "log":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")


def _dial(axes: Axes, look: Look, cell: CellFinding, task: str, *, band: bool) -> None:
    rows = cell.dials.get(task, ())
    levels = [row.difficulty for row in rows]
    axes.plot(
        levels, [row.value for row in rows], linestyle=look.line, color=look.colour, marker=look.mark,
        markerfacecolor=look.fill, markersize=5, linewidth=1.5, label=cell.name,
    )  # fmt: skip
    if band:
        low, high = [row.interval[0] for row in rows], [row.interval[1] for row in rows]
        axes.fill_between(levels, low, high, color=look.colour, alpha=0.12, linewidth=0)


def _legend(figure: Figure, places: Sequence[Axes]) -> None:
    """One legend of everything that any panel shows, below all of them, for which the figure grows."""
    entries: dict[str, Any] = {}
    for axes in places:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(1, min(4, len(entries), int(WIDTH * 11 / (4 + max(map(len, entries), default=1)))))
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * -(-len(entries) // columns))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, labelcolor=INK, fontsize=9
    )
