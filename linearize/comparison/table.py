"""The comparison's table: on a terminal with a column per cell, in Markdown and on the page with a row, and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linearize.comparison.cells import Comparison
from linearize.comparison.findings import CellFinding, ComparisonResult, Difference
from linearize.comparison.noise import Estimate
from linearize.comparison.shared_options import Changes, differing_keys
from linearize.files.run_folder import RUNS
from linearize.plan.table import byte_size
from linearize.recipe.toml import to_inline
from linearize.wording import ABSENT, counted, duration, percent, percent_interval, quantity, short_count

AVERAGE = "average"
KL = "KL, nats/token"
TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in one place of the table.

    Attributes:
        remark: an interval or another addition; "" for none.
        is_best: no other cell does better by more than noise; only where something is kept.
    """

    text: str
    remark: str = ""
    is_best: bool = False

    def __str__(self) -> str:
        return f"{self.text}  {self.remark}" if self.remark else self.text


@dataclass(frozen=True, slots=True)
class Line:
    """One measure: its name, the teacher's entry and one for each cell."""

    name: str
    teacher: Entry
    cells: tuple[Entry, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The whole line."""
        return self.teacher, *self.cells


def comparison_lines(result: ComparisonResult) -> list[Line]:
    """The table, line by line; cells in the order of ``result.cells``."""
    teacher = result.teacher
    if teacher is None:
        return []
    lines = [
        Line(task, Entry(percent(teacher.shares[task])), tuple(_kept(result, cell, task) for cell in result.cells))
        for task in result.tasks
    ]
    lines.append(Line(AVERAGE, Entry(""), tuple(_kept(result, cell, None) for cell in result.cells)))
    costs: list[tuple[str, Entry, Callable[[CellFinding], Entry]]] = [
        (KL, Entry(""), lambda cell: Entry(quantity(cell.kl))),
        ("parameters added", Entry(""), lambda cell: Entry(short_count(cell.costs.parameters_added))),
        ("parameters trained", Entry(""), lambda cell: Entry(short_count(cell.costs.parameters_trained))),
        ("state per sequence", Entry(byte_size(0)), lambda cell: Entry(byte_size(cell.costs.state_bytes))),
        (
            "cache per token", Entry(byte_size(teacher.cache_bytes_per_token)),
            lambda cell: Entry(byte_size(cell.costs.cache_bytes_per_token)),
        ),
        (f"training tokens/s{_at_once(result)}", Entry(""), lambda cell: Entry(short_count(cell.tokens_per_second))),
        (f"training time{_at_once(result)}", Entry(""), lambda cell: Entry(duration(cell.training_seconds))),
        (
            "decode ms/token", _decode(teacher.decode_ms, teacher.decode_rounds_ms),
            lambda cell: _decode(cell.decode_ms, cell.decode_rounds_ms),
        ),
        ("linear sites", Entry(""), lambda cell: Entry(f"{cell.num_linear} of {cell.num_sites}")),
        ("seeds", Entry(""), lambda cell: Entry(f"{len(cell.seeds)} of {result.seeds}")),
    ]  # fmt: skip
    return lines + [Line(name, first, tuple(map(entry, result.cells))) for name, first, entry in costs]


@dataclass(frozen=True, slots=True)
class Block:
    """Some measures of all models: a name for each column, and a row of entries for the teacher and for each cell."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]


def blocks(result: ComparisonResult) -> list[Block]:
    """The same numbers with a row per cell, the one that keeps most first: what it keeps, and what it costs."""
    lines = comparison_lines(result)
    if not lines:
        return []
    by_name = {line.name: line for line in lines}
    quality = [by_name[name] for name in (AVERAGE, *result.tasks, KL)]
    costs = [line for line in lines if line not in quality]
    place = {cell.name: number for number, cell in enumerate(result.cells)}

    def block(title: str, chosen: Sequence[Line]) -> Block:
        cells = [(cell.name, tuple(line.cells[place[cell.name]] for line in chosen)) for cell in result.ranked()]
        first = TEACHER, tuple(line.teacher for line in chosen)
        return Block(title, tuple(line.name for line in chosen), (first, *cells))

    return [block("What is kept", quality), block("What it costs", costs)]


def plan_table(comparison: Comparison) -> RenderableType:
    """What would be run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("cell", "changes"):
        table.add_column(name, overflow="fold")
    for name in ("linear sites", "trained", "state", "cache per token"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in comparison.cells:
        costs, plan = cell.costs, cell.checked.plan
        table.add_row(
            cell.name, Text(shown_changes(cell.changes)), f"{len(plan.linear)} of {len(plan.sites)}",
            short_count(costs.parameters_trained), byte_size(costs.state_bytes), byte_size(costs.cache_bytes_per_token),
        )  # fmt: skip
    cells, seeds = counted(len(comparison.cells), "cell"), counted(comparison.options.seeds, "seed")
    summary = Text(f"{cells}, run with {seeds}, in {RUNS / comparison.name}")
    return Group(table, *([_differences(comparison)] if len(comparison.cells) > 1 else []), summary)


def _differences(comparison: Comparison) -> Table:
    """What the cells' resolved recipes do not have in common, defaults included."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what differs", "value", "cells"):
        table.add_column(name, overflow="fold")
    last = ""
    for path, value, names in differing_keys(comparison.cells):
        table.add_row("" if path == last else path, Text(to_inline(value)), ", ".join(names))
        last = path
    return table


def shown_changes(changes: Changes) -> str:
    """A cell's changes on one line; of a key that is changed twice, what it is in the end."""
    return ", ".join(f"{path} = {to_inline(value)}" for path, value in dict(changes).items()) or "none"


def steps_lines(result: ComparisonResult) -> list[str]:
    """How long the cells were trained: a line for each number of steps, with the cells that took it."""
    cells: dict[str, list[str]] = {}
    for cell in result.cells:
        stages = [stage for stage in (cell.stages[0] if cell.stages else ()) if stage.done]
        text = ", ".join(f"{stage.name} {(stage.done or {}).get('steps', ABSENT)}" for stage in stages)
        cells.setdefault(text or "none", []).append(cell.name)
    lines = [
        f"Optimizer steps of {'all cells' if len(cells) == 1 else ', '.join(who)}: {text}."
        for text, who in cells.items()
    ]
    if lines and result.seconds is not None:
        lines.append(
            f"Every cell was given the steps that fill {duration(result.seconds)} by the time of a step, measured "
            "before; what it took stands above as training time."
        )
    return lines


def headline(result: ComparisonResult) -> str:
    """The best cell, and those that cannot be told from it."""
    ranked = result.ranked()
    if not ranked or ranked[0].average is None:
        return "No cell kept anything that could be compared."
    best, average = ranked[0], ranked[0].average
    text = (
        f"{best.name} keeps most of the teacher on average: {percent(average.value)} "
        f"(95 % interval {percent_interval(average.interval)})."
    )
    if len(ranked) == 1:
        return f"{best.name} keeps {percent(average.value)} of the teacher (95 % {percent_interval(average.interval)})."
    pairs = [(cell, result.between(best.name, cell.name)) for cell in ranked[1:]]
    near = [cell.name for cell, pair in pairs if pair is not None and pair.average and pair.average.is_noise]
    if near:
        return f"{text} Within noise of it: {', '.join(near)}."
    return f"{text} The others keep less by more than noise."


def verdicts(result: ComparisonResult) -> list[str]:
    """What may be said of the averages: for each cell but the best, whether it is behind by more than noise."""
    ranked = result.ranked()
    if len(ranked) < 2 or ranked[0].average is None:
        return []
    best, lines = ranked[0], []
    for cell in ranked[1:]:
        found = result.between(best.name, cell.name)
        if found is None or found.average is None:
            lines.append(f"{cell.name} and {best.name} have no seed in common.")
        elif found.average.is_noise:
            lines.append(f"{cell.name} and {best.name}: within noise ({points(found.average)}).")
        else:
            lines.append(f"{cell.name} keeps less than {best.name} ({points(found.average)}).")
    return lines


def how_tested(result: ComparisonResult) -> str:
    """The test that the verdicts come from, in a few sentences."""
    text = (
        "Differences are averages over the tasks of what is kept, paired by question and seed, with 95 % intervals; "
        "one whose interval holds 0 is within noise. "
    )
    if max((pair.seeds for pair in result.differences), default=0) > 1:
        text += (
            "The interval is the wider of two: over the questions (Bonett and Price's adjusted one for paired answers) "
            "and over the seeds (the paired t-test's). "
        )
    else:
        text += (
            "The interval is over the questions alone (Bonett and Price's adjusted one for paired answers). With one "
            "seed nothing is known of how much another seed would change: a difference is one of these students, not "
            "yet one of their kinds. "
        )
    if len(result.differences) > 1:
        text += (
            f"There are {len(result.differences)} pairs; of pairs that do not differ at all, one in twenty would be "
            "told apart by chance."
        )
    return text.strip()


def points(found: Estimate) -> str:
    """A difference in percentage points: "+4.2 points, 95 % −1.9 to +10.3"."""
    low, high = found.interval
    text = f"{100 * found.value:+.1f} points, 95 % {100 * low:+.1f} to {100 * high:+.1f}"
    return text.replace("-", "−")


def terminal_table(result: ComparisonResult, width: int) -> RenderableType:
    """The table in as many pieces side by side as ``width`` characters ask for, and what may be said of it."""
    lines = comparison_lines(result)
    if not lines:
        return Group("No run has reached its end.", *(Text(line) for line in failure_lines(result)))
    size = 2 + max(len(str(entry)) for line in lines for entry in line.cells)
    first = 2 + max(len(line.name) for line in lines)
    at_once = max(1, (width - first - 2 - max(len(str(line.teacher)) for line in lines) - 2) // size)
    parts: list[RenderableType] = []
    for start in range(0, len(result.cells), at_once):
        chosen = slice(start, start + at_once)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("teacher", justify="right", no_wrap=True, style="dim")
        for cell in result.cells[chosen]:
            heading = textwrap.wrap(cell.name, size - 2)
            table.add_column("\n".join(heading), justify="right", no_wrap=True, vertical="bottom")
        for line in lines:
            entries = [f"[bold]{entry}[/bold]" if entry.is_best else str(entry) for entry in line.cells[chosen]]
            table.add_row(line.name, str(line.teacher), *entries, end_section=line.name == AVERAGE)
        parts.append(table)
    notes = ["Tasks: teacher, share of right answers; students, what they keep of it, with 95 % intervals."]
    if len(result.cells) > 1:
        notes.append("Bold: no other cell keeps more by more than noise.")
    said = [" ".join(notes), headline(result), *verdicts(result), *warning_lines(result), *failure_lines(result)]
    return Group(*parts, *(Text(line) for line in said))


def warning_lines(result: ComparisonResult) -> list[str]:
    """A line for each thing that an evaluator warns of in a run's student."""
    return [f"warning: {cell.name}, {text}" for cell in result.cells for text in cell.warnings]


def failure_lines(result: ComparisonResult) -> list[str]:
    """A line per run that did not reach its end."""
    return [f"failed: {one.cell}, seed {one.seed}: {one.text} (log: {one.log})" for one in result.failures]


def markdown(result: ComparisonResult, charts: Mapping[str, str]) -> str:
    """compare.md: the table, the verdicts and the charts.

    Args:
        charts: file name of a PNG beside it -> what it shows.
    """
    lines = [f"# {result.folder.name}", "", headline(result), ""]
    tables = blocks(result)
    if tables:
        for block in tables:
            lines += [f"## {block.title}", "", _row(("", *block.heads)), _row(["---", *["---:"] * len(block.heads)])]
            lines += [_row((name, *map(_marked, entries))) for name, entries in block.rows] + [""]
        lines += ["Bold: no other cell keeps more by more than noise.", ""] if len(result.cells) > 1 else []
    else:
        lines += ["No run has reached its end.", ""]
    lines += [f"{line}\n" for line in [*steps_lines(result), *warning_lines(result)]]
    if result.differences:
        lines += ["## Differences", "", how_tested(result), ""]
        lines += [f"- {verdict}" for verdict in verdicts(result)] + [""]
        lines += [_row(("keeps more", "keeps less", "difference of the averages", "verdict")), _row(["---"] * 4)]
        lines += [_row(difference_cells(pair)) for pair in result.differences] + [""]
    if result.failures:
        lines += ["## Failed runs", "", *(f"- {line}" for line in failure_lines(result)), ""]
    for file, text in charts.items():
        lines += [f"![{text}]({file})", ""]
    return "\n".join(lines)


def difference_cells(pair: Difference) -> tuple[str, str, str, str]:
    """First cell, second cell, difference, verdict."""
    if pair.average is None:
        return pair.first, pair.second, ABSENT, ABSENT
    return pair.first, pair.second, points(pair.average), "within noise" if pair.average.is_noise else "differ"


def comma_separated(result: ComparisonResult) -> str:
    """compare.csv: a line per cell, the teacher first; plain numbers in the units that the heads name."""
    stream = io.StringIO()
    rows = list(_csv_rows(result))
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["cell"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_rows(result: ComparisonResult) -> Iterator[dict[str, Any]]:
    teacher = result.teacher
    if teacher is None:
        return
    yield {
        "cell": "teacher",
        **{f"{task}_{what}": 1.0 if what == "retention" else "" for task in (*result.tasks, AVERAGE) for what in
           ("retention", "low", "high")},
        "kl_nats_per_token": 0.0, "parameters_added": 0, "parameters_trained": 0, "state_bytes_per_sequence": 0,
        "cache_bytes_per_token": teacher.cache_bytes_per_token, "training_tokens": "", "training_seconds": "",
        "training_tokens_per_second": "", "training_runs_at_once": "",
        "decode_ms_per_token": teacher.decode_ms, "seeds": "",
        "minus_best": "", "minus_best_low": "", "minus_best_high": "", "within_noise_of_best": "",
    }  # fmt: skip
    best = result.ranked()[0]
    for cell in result.cells:
        row: dict[str, Any] = {"cell": cell.name}
        for task, found in [*cell.tasks.items(), (AVERAGE, cell.average)]:
            values = (found.value, *found.interval) if found else ("", "", "")
            row |= dict(zip((f"{task}_retention", f"{task}_low", f"{task}_high"), values, strict=True))
        pair = result.between(best.name, cell.name)
        behind = pair.average if pair else None
        yield row | {
            "kl_nats_per_token": cell.kl, "parameters_added": cell.costs.parameters_added,
            "parameters_trained": cell.costs.parameters_trained, "state_bytes_per_sequence": cell.costs.state_bytes,
            "cache_bytes_per_token": cell.costs.cache_bytes_per_token, "training_tokens": cell.tokens,
            "training_seconds": cell.training_seconds, "training_tokens_per_second": cell.tokens_per_second,
            "training_runs_at_once": result.jobs, "decode_ms_per_token": cell.decode_ms,
            "seeds": len(cell.seeds),
            "minus_best": -behind.value if behind else 0.0 if cell is best else "",
            "minus_best_low": -behind.interval[1] if behind else "",
            "minus_best_high": -behind.interval[0] if behind else "",
            "within_noise_of_best": behind.is_noise if behind else True if cell is best else "",
        }  # fmt: skip


def _kept(result: ComparisonResult, cell: CellFinding, task: str | None) -> Entry:
    found = cell.average if task is None else cell.tasks[task]
    if found is None:
        return Entry(ABSENT)
    return Entry(percent(found.value), percent_interval(found.interval), is_best(result, cell, task))


def is_best(result: ComparisonResult, cell: CellFinding, task: str | None) -> bool:
    """Whether no other cell keeps more of a task (of the average: None) by more than noise."""
    for pair in result.differences:
        if cell.name in (pair.first, pair.second):
            found = pair.average if task is None else pair.tasks[task]
            own_side = 1 if pair.first == cell.name else -1
            if found is not None and not found.is_noise and own_side * found.value < 0:
                return False
    return len(result.cells) > 1


def _decode(value: float | None, rounds: Sequence[float]) -> Entry:
    return Entry(quantity(value), f"{quantity(min(rounds))}–{quantity(max(rounds))}" if len(rounds) > 1 else "")


def _at_once(result: ComparisonResult) -> str:
    return f", up to {result.jobs} at once" if result.jobs > 1 else ""


def _marked(entry: Entry) -> str:
    return f"**{entry.text}** {entry.remark}".strip() if entry.is_best else str(entry)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
