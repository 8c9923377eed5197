"""The page of a bench: one file that needs nothing beside it, and its chart as PNG."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from linearize.files.whole_file import write_text
from linearize.inference.engines import ENGINES
from linearize.plan.table import byte_size
from linearize.report.page import flat, render, speed_chart_of
from linearize.report.speed import Bench, how_measured, machine, speed_tables
from linearize.report.speed_findings import speed_findings

TEMPLATE = "bench.html.j2"


def write_page(bench: Bench, folder: Path, name: str) -> Path:
    """Writes index.html and speed.png; returns the page's path."""
    page = render(
        files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"),
        name=name,
        machine=machine(bench),
        chart=speed_chart_of(bench, folder, brief=False),
        findings=speed_findings(bench),
        how=how_measured(bench),
        models=[
            {"name": model.name, "what": model.what, "weights": byte_size(model.weight_bytes)} for model in bench.models
        ],
        engines=[(engine, ENGINES[engine]) for engine in bench.engines if engine in ENGINES],
        tables=[table for engine in bench.engines for table in speed_tables(bench, engine)],
        failures=bench.failures(),
        command=bench.command,
        details=[*flat(bench.settings), *flat(bench.environment)],
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"
