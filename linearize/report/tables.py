"""What teacher and student scored, as a table for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from linearize.report.sections import read_sections
from linearize.wording import ABSENT, change, counted, duration, percent, percent_interval, quantity, short_count

SETTLED = 0.9
"""A layer stage whose mean error ends above this fraction of where it began is said to have hardly moved."""


def retention_table(results: Mapping[str, Any]) -> Table:
    """The terminal's table, 80 columns wide for short task names: a task a line, the average below."""
    average = results.get("average_retention")
    table = Table(
        title="Teacher and student" if average is None else f"The student keeps {percent(average)} on average",
        caption="right answers of both on the same questions; 95 % intervals in percent",
        show_footer=average is not None, title_style="bold", caption_style="dim", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column("task", "average", no_wrap=True)
    table.add_column("teacher", percent(mean_share(results, "teacher")), justify="right", no_wrap=True)
    table.add_column("student", percent(mean_share(results, "student")), justify="right", no_wrap=True)
    table.add_column("interval", "", justify="right", no_wrap=True, style="dim")
    table.add_column("kept", percent(average), justify="right", style="bold", no_wrap=True)
    table.add_column(
        "interval", percent_interval(results.get("average_retention_interval")), justify="right", style="dim",
        footer_style="dim", no_wrap=True,
    )  # fmt: skip
    table.add_column("questions", "", justify="right", no_wrap=True)
    for name, task in results["tasks"].items():
        teacher, _, *others = task_cells(task)
        table.add_row(name, teacher, *others)
    return table


def markdown_report(results: Mapping[str, Any], charts: Mapping[str, str]) -> str:
    """report.md: the tables of the page, and its charts as images.

    Args:
        charts: file name of a PNG beside the report -> what it shows.
    """
    lines = [f"# {results['run']}", "", verdict(results), ""]
    if results["tasks"]:
        lines += ["## Teacher and student", ""]
        head = ("task", "teacher", "95 %", "student", "95 %", "kept", "95 %", "questions")
        rows = [(name, *task_cells(task)) for name, task in results["tasks"].items()]
        average = (
            "**average**", percent(mean_share(results, "teacher")), "", percent(mean_share(results, "student")), "",
            f"**{percent(results['average_retention'])}**",
            percent_interval(results.get("average_retention_interval")), "",
        )  # fmt: skip
        lines += [*_markdown_table(head, [*rows, average]), ""]
    for section in read_sections(results).values():
        lines += [f"## {section.title}", ""]
        lines += [f"{section.caption[:1].upper()}{section.caption[1:]}.", ""] if section.caption else []
        lines += [*_markdown_table(section.head, section.rows), ""] if section.rows else []
        lines += [section.note, ""] if section.note else []
        lines += [f"**Warning:** {text}.\n" for text in section.warnings]
    if results["stages"]:
        lines += ["## Stages", ""]
        head = ("stage", "objective", "steps", "tokens", "time", "trained parameters", "loss", "mean site error")
        lines += [*_markdown_table(head, [stage_cells(stage) for stage in results["stages"]]), ""]
    for note in [*change_notes(results), bad_records_note(results)]:
        lines += [note, ""] if note else []
    for file, text in charts.items():
        lines += [f"![{text}]({file})", ""]
    return "\n".join(lines)


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence that says how it went, naming the weakest task."""
    average = results.get("average_retention")
    kept = {name: task["retention"] for name, task in results["tasks"].items() if task.get("retention") is not None}
    if average is None or not kept:
        return "The student was not evaluated." if not results["tasks"] else "The teacher answered nothing right."
    within = results.get("average_retention_interval")
    interval = f" (95 % interval {percent_interval(within)})" if within else ""
    if len(kept) == 1:
        return f"The student keeps {percent(average)} of its teacher's accuracy{interval} on {next(iter(kept))}."
    weakest = min(kept, key=lambda name: kept[name])
    return (
        f"Over {len(kept)} tasks the student keeps {percent(average)} of its teacher's accuracy on average{interval}; "
        f"it keeps least of {weakest}, {percent(kept[weakest])}."
    )


def task_cells(task: Mapping[str, Any]) -> tuple[str, ...]:
    """teacher, interval, student, interval, retention, interval, questions."""
    return (
        percent(task["teacher"]), percent_interval(task.get("teacher_interval")),
        percent(task["student"]), percent_interval(task.get("student_interval")),
        percent(task.get("retention")), percent_interval(task.get("retention_interval")),
        str(task["questions"]),
    )  # fmt: skip


def stage_cells(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """name, objective, steps, tokens, time, trained parameters, loss first to last, mean site error first to last."""
    return (
        str(stage.get("name", ABSENT)), str(stage.get("objective", ABSENT)), str(stage.get("steps", ABSENT)),
        short_count(stage.get("tokens")), duration(stage.get("seconds")), short_count(stage.get("trained_parameters")),
        change(stage.get("first_loss"), stage.get("last_loss")),
        change(mean_error(stage.get("first_sites")), mean_error(stage.get("sites"))),
    )  # fmt: skip


def stage_remark(stage: Mapping[str, Any]) -> str:
    """What the site errors of a layer stage say about it; "" for other stages."""
    first, last = mean_error(stage.get("first_sites")), mean_error(stage.get("sites"))
    if first is None or last is None or not stage["sites"]:
        return ""
    worst = max(stage["sites"], key=lambda site: float(stage["sites"][site]))
    at_worst = f"furthest from the teacher: site {worst} ({quantity(stage['sites'][worst])})"
    if last > first:
        moved = "leaves the sites further from the teacher than it found them"
    else:
        moved = f"{'hardly moves' if last > SETTLED * first else 'moves'} the sites towards the teacher"
    return f"{moved}; {at_worst}"


def change_notes(results: Mapping[str, Any]) -> list[str]:
    """Of each change of the recipe while a stage was at work, when it was made and what it was."""
    return [
        f"Stage {change['stage']} went on from step {change['step']} with a changed recipe: "
        f"{'; '.join(change['changes'])}."
        for change in results.get("changes", ())
    ]


def bad_records_note(results: Mapping[str, Any]) -> str:
    """What of the training data the run left out or cut, and where each record is named; "" where it left out none."""
    faults, num_cut = results.get("bad_records") or {}, results.get("cut_records") or 0
    said = []
    if faults:
        kinds = ", ".join(f"{count} {fault}" for fault, count in faults.items())
        said.append(f"{counted(sum(faults.values()), 'record')} of the training data left out: {kinds}")
    if num_cut:
        said.append(f"{counted(num_cut, 'record')} longer than data.max_tokens cut to it")
    return f"{'; '.join(said)}. See bad_records.jsonl." if said else ""


def mean_error(sites: Mapping[str, float] | None) -> float | None:
    """The mean over sites; None without any."""
    return sum(sites.values()) / len(sites) if sites else None


def mean_share(results: Mapping[str, Any], who: str) -> float | None:
    """The mean over tasks of the teacher's or the student's share of right answers."""
    shares = [task[who] for task in results["tasks"].values()]
    return sum(shares) / len(shares) if shares else None


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return [line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, rows)]
