"""The chart of a bench: what grows with the prompt and what does not. Models differ in colour, engines in line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from linearize.plan.table import byte_size
from linearize.report.plots import INK, STUDENT, STYLE, TEACHER, panels
from linearize.report.speed import EAGER, Bench, SpeedCell, SpeedModel
from linearize.report.speed_findings import batch_speed, first_ms, held_bytes, peak_bytes, token_ms
from linearize.wording import short_count

COLOURS = (STUDENT, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TEACHER_COLOURS = (TEACHER, "#2B333D", "#6B5B00")
MARKS = ("o", "D", "^", "v", "P", "X")
LINES = ("-", (0, (4, 2)))
BRIEF = ("ms per token", "state and cache", "memory")
"""The panels of a run's report."""
QUANTITIES: dict[str, Callable[[SpeedCell], float | None]] = {
    "ms per token": token_ms,
    "state and cache": held_bytes,
    "memory": peak_bytes,
    "ms of the prompt": first_ms,
    "tokens/s of a batch": batch_speed,
}
MOST_TICKS = 6


def speed_chart(bench: Bench, *, brief: bool = False) -> Figure | None:
    """A panel for each quantity that was measured, by the length of the prompt, both logarithmic; None without any."""
    shown = [
        (title, quantity)
        for title, quantity in QUANTITIES.items()
        if (title in BRIEF or not brief) and any(quantity(cell) for cell in bench.cells)
    ]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(shown), height=3.0)
        for axes, (title, quantity) in zip(places, shown, strict=True):
            for model in bench.models:
                for engine in bench.engines:
                    _curve(axes, bench, model, engine, quantity)
            axes.set_title(title)
            axes.set_xlabel("tokens of the prompt")
            _scales(axes, bench.lengths, is_bytes=title in ("state and cache", "memory"))
        entries: dict[str, Any] = {}
        for axes in places:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        columns = max(1, min(4, len(entries)))
        figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(entries) // columns))
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=columns,
            labelcolor=INK,
            fontsize=9,
            handlelength=3.2,
        )
    return figure


def _curve(
    axes: Axes, bench: Bench, model: SpeedModel, engine: str, quantity: Callable[[SpeedCell], float | None]
) -> None:
    cells = (bench.cell(model.name, engine, tokens) for tokens in bench.lengths)
    points = [(cell.tokens, value) for cell in cells if cell is not None and (value := quantity(cell))]
    if not points:
        return
    colour, mark = _look(bench, model)
    line: Any = LINES[engine == EAGER and len(bench.engines) > 1]
    label = f"{model.name}, {engine}" if len(bench.engines) > 1 else model.name
    lengths, values = zip(*points, strict=True)
    axes.plot(lengths, values, color=colour, marker=mark, markersize=5, linewidth=1.8, linestyle=line, label=label)


def _look(bench: Bench, model: SpeedModel) -> tuple[str, str]:
    teachers = [one for one in bench.models if any(other.teacher == one.name for other in bench.models)]
    if model in teachers:
        return TEACHER_COLOURS[teachers.index(model) % len(TEACHER_COLOURS)], "s"
    number = [one for one in bench.models if one not in teachers].index(model)
    return COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]


def _scales(axes: Axes, lengths: Sequence[int], *, is_bytes: bool) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log", base=2 if is_bytes else 10)
    shown = lengths[:: -(-len(lengths) // MOST_TICKS)]
    axes.xaxis.set_major_locator(FixedLocator([float(tokens) for tokens in shown]))
    axes.xaxis.set_major_formatter(lambda tokens, _: short_count(tokens).replace(" ", ""))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high < 4 * low:  # so that what is level looks level
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 2, 2 * middle)
    if is_bytes:
        axes.yaxis.set_major_formatter(lambda value, _: byte_size(round(value)).replace(".0 ", " "))
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
