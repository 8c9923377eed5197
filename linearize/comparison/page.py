"""report/ of a comparison: a page that needs nothing beside it, Markdown, CSV, JSON and the charts as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from linearize.comparison import table
from linearize.comparison.findings import ComparisonResult, DialPoint, Difference
from linearize.comparison.noise import Estimate
from linearize.files.json_file import write_json
from linearize.files.whole_file import write_text
from linearize.report.page import Chart, data_url, flat, render, speed_section
from linearize.report.speed import FOLDER
from linearize.wording import counted

TEMPLATE = "page.html.j2"


def write_report(result: ComparisonResult) -> Path:
    """Writes index.html, compare.md, compare.csv, compare.json and the charts; returns the page's path."""
    folder = result.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    charts = _draw_charts(result, folder)
    speed = speed_section(result.folder / FOLDER, folder, charts)
    write_json(folder / "compare.json", as_json(result))
    write_text(folder / "compare.csv", table.comma_separated(result))
    write_text(folder / "compare.md", table.markdown(result, {chart.file: chart.text for chart in charts.values()}))
    write_text(folder / "index.html", render_page(result, charts, speed))
    return folder / "index.html"


def render_page(result: ComparisonResult, charts: Mapping[str, Chart], speed: Markup | None = None) -> str:
    """The page as text.

    Args:
        charts: by name ("costs", "difficulty", "losses"); a missing one is left out.
        speed: the section on a bench of the cells; None without one.
    """
    from linearize.comparison.charts import looks

    return render(
        files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"),
        name=result.folder.name,
        subject=_subject(result),
        headline=table.headline(result),
        blocks=table.blocks(result),
        warnings=table.warning_lines(result),
        looks=dict(zip((cell.name for cell in result.cells), looks(result.cells), strict=True)),
        charts=charts,
        speed=speed,
        widest=max(
            (_reach(point) for cell in result.cells for dial in cell.dials.values() for point in dial), default=0
        ),
        how_tested=table.how_tested(result),
        how_decoded=result.how_decoded,
        pairs=[(*table.difference_cells(pair), _differing(pair)) for pair in result.differences],
        failures=result.failures,
        source=result.source,
        changed=[(cell.name, table.shown_changes(cell.changes)) for cell in result.cells],
        environment=list(flat(result.environment)),
        steps=table.steps_lines(result),
    )


def as_json(value: Any) -> Any:
    """A finding as JSON-able data by the names of its fields; curves and paths of single runs stay in their folders."""
    if isinstance(value, Estimate):
        return {"value": value.value, "interval": list(value.interval)}
    if is_dataclass(value):
        items = {field.name: getattr(value, field.name) for field in fields(value) if field.name != "stages"}
        return {name: as_json(item) for name, item in items.items()}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _reach(point: DialPoint) -> float:
    low, high = point.interval
    return max(point.value - low, high - point.value)


def _subject(result: ComparisonResult) -> str:
    counts = sorted(set(result.questions.values()))
    asked = f"{' or '.join(map(str, counts))} questions a task" if counts else ""
    machine = result.environment.get("device", "")
    machine = result.environment.get("processor", "CPU") if machine == "cpu" else machine
    runs = (counted(len(result.cells), "cell"), counted(result.seeds, "seed"))
    return ", ".join(part for part in (*runs, asked, str(machine)) if part)


def _differing(pair: Difference) -> str:
    """Tasks in which the pair differs by more than noise, the larger differences first."""
    found = [(task, each) for task, each in pair.tasks.items() if each is not None and not each.is_noise]
    found.sort(key=lambda item: -abs(item[1].value))
    return ", ".join(f"{task} {100 * each.value:+.1f}".replace("-", "−") for task, each in found)


def _draw_charts(result: ComparisonResult, folder: Path) -> dict[str, Chart]:
    # matplotlib takes a second to import; whoever only prints the table does without it.
    from linearize.comparison import charts
    from linearize.report.plots import save_chart

    figures = {
        "costs": (charts.cost_chart(result), "What each cell keeps on average against what it costs"),
        "difficulty": (charts.difficulty_chart(result), "Right answers of teacher and cells against difficulty"),
        "losses": (charts.loss_chart(result), "Loss of each cell and stage by optimizer step"),
    }
    found = {}
    for name, (figure, text) in figures.items():
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        found[name] = Chart(f"{name}.png", data_url(save_chart(figure, folder / f"{name}.png"), "image/svg+xml"), text)
    return found
