"""report/index.html: one page that needs nothing beside it, and report.md with its charts."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from linearize.files.whole_file import write_text
from linearize.plugin.components import component_title
from linearize.protocols.conversation import IMAGE_MARK
from linearize.recipe.site_ranges import site_ranges
from linearize.report import tables
from linearize.report.records import RunRecord, StageRecord, read_run
from linearize.report.results import build_results
from linearize.report.sections import read_sections
from linearize.report.speed import FOLDER, Bench, how_measured, machine, read_bench, speed_tables
from linearize.report.speed_findings import speed_findings
from linearize.wording import change, counted, duration, percent, percent_interval, quantity, short_count

TEMPLATE = "page.html.j2"
STYLE_SHEET = "page.css"
SPEED_TEMPLATE, SPEED_CHART = "speed.html.j2", "speed.png"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page.

    Attributes:
        file: name of the PNG beside the page.
        source: data URL of the SVG in the page.
        text: what it shows, for those who cannot see it.
    """

    file: str
    source: str
    text: str


def write_report(run_folder: Path) -> None:
    """Writes index.html, report.md and the charts under report/ from what the run folder holds.

    It can be called at any time, on an unfinished run too: what is missing is said in its place.

    Raises:
        RunError: there is no such folder.
    """
    run = read_run(run_folder)
    folder = run_folder / "report"
    folder.mkdir(exist_ok=True)
    results = build_results(run)
    charts = _draw_charts(run, results, folder)
    speed = speed_section(run_folder / FOLDER, folder, charts)
    write_text(folder / "index.html", render_page(run, results, charts, speed))
    described = {chart.file: chart.text for chart in charts.values()}
    write_text(folder / "report.md", tables.markdown_report(results, described) + "\n")


def render_page(
    run: RunRecord, results: Mapping[str, Any], charts: Mapping[str, Chart], speed: Markup | None = None
) -> str:
    """The page as text.

    Args:
        charts: by name ("retention", "dials", "losses", "sites"); a section without its chart says why there is none.
        speed: the section on a bench of the run; None without one.
    """
    template = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return render(
        template,
        name=run.name,
        subject=_subject(run.recipe),
        verdict=tables.verdict(results),
        tiles=list(_tiles(run, results)),
        charts=charts,
        speed=speed,
        tasks=results["tasks"],
        results=results,
        sections=read_sections(results),
        averages={who: tables.mean_share(results, who) for who in ("teacher", "student")},
        stages=[_stage_row(stage) for stage in run.stages],
        bad_records=tables.bad_records_note(results),
        site_table=_site_table(run),
        examples=[_shown_example(run, example) for example in run.examples],
        recipe_text=run.recipe_text,
        changes=tables.change_notes(results),
        environment=list(flat(run.environment)),
    )


def render(template: str, **values: Any) -> str:
    """A page of linearize's looks from a Jinja template, which gets the style sheet as ``style``."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, percent_interval=percent_interval, quantity=quantity)
    style = Markup(files(__package__).joinpath(STYLE_SHEET).read_text(encoding="utf-8"))
    return environment.from_string(template).render(style=style, **values)


def speed_chart_of(bench: Bench, folder: Path, *, brief: bool) -> Chart | None:
    """The chart of a bench, whose PNG is written into the folder; None where nothing was measured."""
    from linearize.report import plots, speed_charts

    figure = speed_charts.speed_chart(bench, brief=brief)
    if figure is None:
        (folder / SPEED_CHART).unlink(missing_ok=True)
        return None
    vector = plots.save_chart(figure, folder / SPEED_CHART)
    text = "Time and memory of each model by the length of the prompt"
    return Chart(SPEED_CHART, data_url(vector, "image/svg+xml"), text)


def speed_section(bench_folder: Path, folder: Path, charts: dict[str, Chart]) -> Markup | None:
    """The section on the bench of a run or comparison, whose chart joins the others; None without one."""
    bench = read_bench(bench_folder)
    if bench is None or not bench.cells:
        return None
    drawn = speed_chart_of(bench, folder, brief=True)
    if drawn is not None:
        charts["speed"] = drawn
    return speed_panel(bench, drawn)


def speed_panel(bench: Bench, chart: Chart | None) -> Markup:
    """The section "what linear time buys" of a page."""
    template = files(__package__).joinpath(SPEED_TEMPLATE).read_text(encoding="utf-8")
    engine = bench.engines[-1]
    return Markup(
        render(
            template, chart=chart, findings=speed_findings(bench), machine=machine(bench), how=how_measured(bench),
            tables=speed_tables(bench, engine),
        )
    )  # fmt: skip


def _draw_charts(run: RunRecord, results: Mapping[str, Any], folder: Path) -> dict[str, Chart]:
    # matplotlib takes a second to import; whoever only prints a table does without it.
    from linearize.report import plots

    figures = {
        "retention": (plots.retention_chart(results["tasks"]), "Right answers of both models and what is kept"),
        "dials": (plots.dial_chart(results.get("dials") or {}), "Right answers of both models against difficulty"),
        "losses": (plots.loss_chart(run.stages), "Loss of each stage by optimizer step"),
        "sites": (plots.site_chart(run.stages), "Error of each attention site by optimizer step"),
    }  # fmt: skip
    charts = {}
    for name, (figure, text) in figures.items():
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        vector = plots.save_chart(figure, folder / f"{name}.png")
        charts[name] = Chart(f"{name}.png", data_url(vector, "image/svg+xml"), text)
    return charts


def _subject(recipe: Mapping[str, Any]) -> str:
    """ "hovle (embedded) → mamba2, layout all, seeded by mimic"; "" without a recipe."""
    teacher, student = recipe.get("teacher", {}), recipe.get("student", {})
    mixer = student.get("mixer", {})
    if "type" not in teacher or "type" not in mixer:
        return ""
    checkpoint = f" ({teacher['checkpoint']})" if "checkpoint" in teacher else ""
    parts = [f"{teacher['type']}{checkpoint} → {component_title(mixer)}"]
    for entry in student.get("sites", []):
        parts.append(f"{component_title(entry['mixer'])} at sites {site_ranges(entry['sites'])}")
    if layout := student.get("layout", {}).get("type"):
        parts.append(f"layout {layout}")
    if seeder := student.get("seeder", {}).get("type"):
        parts.append(f"seeded by {seeder}")
    return ", ".join(parts)


def _tiles(run: RunRecord, results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The headline numbers: what, value, remark."""
    if results.get("average_retention") is not None:
        within = results.get("average_retention_interval")
        yield (
            "average retention", percent(results["average_retention"]),
            f"95 % interval {percent_interval(within)}" if within else f"over {len(results['tasks'])} tasks",
        )  # fmt: skip
        teacher, student = (tables.mean_share(results, who) for who in ("teacher", "student"))
        yield "right answers", percent(student), f"teacher {percent(teacher)}, mean over tasks"
    if results.get("top1_agreement") is not None:
        yield (
            "same first choice", percent(results["top1_agreement"]),
            f"of the next answer token; KL {quantity(results.get('kl'))} nats",
        )  # fmt: skip
    done = [stage.done for stage in run.stages if stage.done is not None]
    if done:
        tokens, seconds = (sum(stage.get(name, 0) for stage in done) for name in ("tokens", "seconds"))
        yield "tokens", short_count(tokens), f"in {counted(len(done), 'stage')}"
        device = run.environment.get("device", "")
        machine = run.environment.get("processor", "a CPU") if device == "cpu" else device
        yield "distilled in", duration(seconds), f"on {machine}" if machine else ""
        trained = max(stage.get("trained_parameters", 0) for stage in done)
        yield "parameters trained", short_count(trained), "at most, in one stage"


def _stage_row(stage: StageRecord) -> dict[str, Any]:
    if stage.done is not None:
        return {
            "number": stage.number, "cells": tables.stage_cells(stage.done), "remark": tables.stage_remark(stage.done)
        }  # fmt: skip
    losses = stage.losses()
    last = stage.metrics[-1] if stage.metrics else {}
    unfinished = {
        "name": stage.name, "steps": last.get("step", 0), "tokens": last.get("tokens"),
        "first_loss": losses[0][1] if losses else None, "last_loss": losses[-1][1] if losses else None,
    }  # fmt: skip
    return {"number": stage.number, "cells": tables.stage_cells(unfinished), "remark": "not finished"}


def _site_table(run: RunRecord) -> dict[str, Any] | None:
    """First and last error of every site in every layer stage; None without a layer stage."""
    columns = [(stage, points) for stage in run.stages if (points := stage.site_errors())]
    if not columns:
        return None
    sites = sorted({site for _, points in columns for site in points[-1][1]})
    return {
        "head": [f"{stage.number} {stage.name}" for stage, _ in columns],
        "rows": [
            (site, [change(points[0][1].get(site), points[-1][1].get(site)) for _, points in columns]) for site in sites
        ],
    }


def _shown_example(run: RunRecord, example: Mapping[str, Any]) -> dict[str, Any]:
    sources = []
    for name in example["images"]:
        try:
            sources.append(data_url((run.path / "evaluation" / name).read_bytes(), "image/webp"))
        except OSError:
            continue  # the text of the example still says what was asked and answered
    return {**example, "question": _without_bare_marks(example["question"]), "sources": sources}


def _without_bare_marks(question: str) -> str:
    """The question on one line; an image mark stays, as "[image]", where the words around it say which image it is."""
    text = " ".join(line.strip() for line in question.split("\n") if line.replace(IMAGE_MARK, "").strip())
    if text.count(IMAGE_MARK) == 1:
        text = text.removeprefix(IMAGE_MARK).removesuffix(IMAGE_MARK)
    return " ".join(text.replace(IMAGE_MARK, " [image] ").split())


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested tables as text, its name the path to it; absent values are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name} · ")
        elif value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{prefix}{name}", shown


def data_url(content: bytes, media_type: str) -> str:
    """A resource that stands in the page itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
