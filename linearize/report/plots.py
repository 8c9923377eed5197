"""The report's charts. Colours are Okabe and Ito's, which colour-blind readers tell apart; form repeats them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from linearize.files.whole_file import written_whole
from linearize.report.records import StageRecord
from linearize.wording import percent

TEACHER, STUDENT, GRID, INK = "#8C96A3", "#0072B2", "#E3E7EC", "#2B333D"
STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10, "text.color": INK,
    "axes.edgecolor": "#B8C0CA", "axes.labelcolor": INK, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": "#5B6572", "ytick.color": "#5B6572",
    "legend.frameon": False, "figure.facecolor": "white", "figure.constrained_layout.use": True,
    # Text as outlines: the page looks the same without the font. A fixed salt: equal charts are equal files.
    "svg.fonttype": "path", "svg.hashsalt": "linearize",
}  # fmt: skip
WIDTH = 9.0
"""Inches of every chart."""
MOST_POINTS = 400
"""Points of a drawn curve; longer ones are averaged down, which no eye sees and halves the page."""

MOST_ERROR = 3.0
"""Latest end of the colour scale of site errors; a diverging site must not bleach all others."""


def loss_chart(stages: Sequence[StageRecord]) -> Figure | None:
    """A panel per stage: the loss at each logged step and its running mean; None when nothing was logged."""
    logged = [stage for stage in stages if stage.losses()]
    if not logged:
        return None
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(logged), height=2.7)
        for axes, stage in zip(places, logged, strict=True):
            steps, losses = zip(*thinned(stage.losses()), strict=True)
            smooth = running_mean(losses)
            axes.plot(steps, losses, color=STUDENT, alpha=0.3, linewidth=1, marker="o" if len(steps) < 3 else None)
            axes.plot(steps, smooth, color=STUDENT, linewidth=2)
            positive = [loss for loss in losses if loss > 0]
            if len(positive) == len(losses) and max(positive) > 8 * min(positive):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(f"{stage.number}  {stage.name}")
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        places[0].set_ylabel("loss")
    return figure


def site_chart(stages: Sequence[StageRecord]) -> Figure | None:
    """A heat map of site by step per layer stage, all on one scale; None when no stage reports sites."""
    layered = [(stage, points) for stage in stages if (points := stage.site_errors())]
    if not layered:
        return None
    sites = sorted({site for _, points in layered for _, errors in points for site in errors})
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(layered), height=max(2.7, 1.3 + 0.16 * len(sites)))
        errors_seen = sorted(error for _, points in layered for _, errors in points for error in errors.values())
        # All but the highest twentieth have a colour of their own.
        end = min(max(errors_seen[int(0.95 * (len(errors_seen) - 1))], 1.0), MOST_ERROR)
        image = None
        for axes, (stage, points) in zip(places, layered, strict=True):
            points = points[:: max(1, len(points) // MOST_POINTS)]
            edges = _edges([step for step, _ in points])
            grid = [[errors.get(site, math.nan) for _, errors in points] for site in sites]
            # Rasterized: as vectors, neighbouring cells have hairlines between them in browsers.
            image = axes.pcolormesh(
                edges, [index - 0.5 for index in range(len(sites) + 1)], grid, cmap="viridis_r", rasterized=True,
                vmin=0, vmax=end,
            )  # fmt: skip
            axes.invert_yaxis()
            axes.grid(False)
            axes.set_title(f"{stage.number}  {stage.name}")
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            shown = range(0, len(sites), max(1, math.ceil(len(sites) / 16)))
            axes.set_yticks(list(shown), [str(sites[index]) for index in shown])
        places[0].set_ylabel("site, first to last")
        assert image is not None  # there is a panel for each stage in the list, which is not empty
        beyond = "max" if errors_seen[-1] > end else "neither"
        bar = figure.colorbar(image, ax=list(places), extend=beyond, pad=0.015, aspect=25)
        bar.ax.axhline(1, color="white", linewidth=1.5)
        bar.set_label("error / variance of target")
        bar.outline.set_visible(False)
    return figure


def retention_chart(tasks: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Bars of teacher and student with their intervals, and beside them what is kept; None without tasks."""
    if not tasks:
        return None
    names = list(tasks)
    rows = range(len(names))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.3 + 0.48 * len(names)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.7, 1], gridspec_kw={"wspace": 0.1})
        for who, colour, offset in (("teacher", TEACHER, -0.19), ("student", STUDENT, 0.19)):
            shares = [tasks[name][who] for name in names]
            left.barh(
                [row + offset for row in rows], shares, height=0.36, color=colour, label=who,
                xerr=_distances(shares, [tasks[name].get(f"{who}_interval") for name in names]),
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2.5, "capthick": 1},
            )  # fmt: skip
        left.set_xlim(0, 1.02)
        left.xaxis.set_major_formatter(PercentFormatter(1))
        left.set_yticks(list(rows), names)
        left.grid(axis="y", visible=False)
        left.set_title("right answers")
        left.invert_yaxis()
        _retention_panel(right, tasks, names)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _retention_panel(axes: Axes, tasks: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    known = [(row, tasks[name]) for row, name in enumerate(names) if tasks[name].get("retention") is not None]
    kept = [task["retention"] for _, task in known]
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.errorbar(
        kept, [row for row, _ in known], xerr=_distances(kept, [task.get("retention_interval") for _, task in known]),
        fmt="o", color=STUDENT, markersize=6, elinewidth=1.4, capsize=3,
    )  # fmt: skip
    ends = [end for _, task in known for end in task.get("retention_interval") or ()]
    low, high = min([*kept, *ends, 0.9]), max([*kept, *ends, 1.03])
    # The figures stand in a column of their own, right of everything that is drawn.
    room = 0.3 * (high - low)
    axes.set_xlim(low - 0.05 * (high - low), high + 1.15 * room)
    for row, task in known:
        axes.text(high + 1.1 * room, row, percent(task["retention"]), ha="right", va="center", fontsize=9.5)
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.grid(axis="y", visible=False)
    axes.set_title("kept of the teacher's")
    axes.tick_params(axis="y", length=0)


def dial_chart(dials: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """A panel per dial: accuracy of both models against difficulty, with 95 % bands; None without dials."""
    turned = {name: rows for name, rows in dials.items() if rows}
    if not turned:
        return None
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(turned), height=2.8, sharey=True)
        for axes, (name, rows) in zip(places, turned.items(), strict=True):
            levels = [row["difficulty"] for row in rows]
            for who, colour, line, marker in (("teacher", TEACHER, "--", "s"), ("student", STUDENT, "-", "o")):
                axes.plot(levels, [row[who] for row in rows], line, color=colour, marker=marker, linewidth=2, label=who)
                if all(row.get(f"{who}_interval") for row in rows):
                    low, high = zip(*(row[f"{who}_interval"] for row in rows), strict=True)
                    axes.fill_between(levels, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.set_title(name)
            axes.set_xlabel("difficulty")
            axes.set_ylim(-0.03, 1.05)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        places[0].set_ylabel("right answers")
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def save_chart(figure: Figure, path: Path) -> bytes:
    """Writes a PNG of the chart and returns it as SVG."""
    FigureCanvasAgg(figure)
    vector = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        with written_whole(path) as part:
            figure.savefig(part, format="png", dpi=150)
        figure.savefig(vector, format="svg", dpi=150, metadata={"Date": None})
    return vector.getvalue()


def panels(count: int, *, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Axes in rows of at most four; a place that is left over stays empty."""
    columns = min(count, 4 if count % 4 == 0 or count > 6 else 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    places = list(grid.flat)
    for empty in places[count:]:
        empty.set_visible(False)
    return figure, places[:count]


def _distances(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> list[list[float]]:
    """How far each interval reaches below and above its value, as matplotlib wants it; 0 where it is unknown."""
    ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return [below, above]


def _edges(steps: Sequence[int]) -> list[float]:
    """Borders between logged steps; the first logged step's cell begins at 0."""
    if len(steps) == 1:
        return [0.0, float(steps[0])]
    middles = [(before + after) / 2 for before, after in pairwise(steps)]
    return [0.0, *middles, float(steps[-1])]


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS`` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours, over a twentieth of the curve."""
    reach = len(values) // 40
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]
