"""A bench from its targets to its results: where they go, and what a terminal shows of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linearize.errors import RunError
from linearize.files.names import file_name
from linearize.files.run_folder import disk_errors
from linearize.inference.bench import BenchOptions, run_bench, unfinished
from linearize.inference.shapes import ShapeOptions, shape_subjects
from linearize.inference.subjects import find_subjects
from linearize.pipeline.display import Display
from linearize.plugin.discovery import Plugins
from linearize.report.speed import FILE, FOLDER, Bench, how_measured, machine, speed_tables


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured, now and before, and the file that holds it."""

    bench: Bench
    file: Path


def bench_targets(
    targets: Sequence[str],
    options: BenchOptions,
    folder: Path | None,
    display: Display,
    plugins: Plugins,
    shape: ShapeOptions | None = None,
) -> BenchResult:
    """Understands all targets and options, then measures; see ``linearize.api.bench``."""
    if bool(targets) == (shape is not None):
        found = f"{shlex.join(targets)} and shape '{shape.name}'" if shape is not None else "nothing"
        raise RunError(
            f"expected runs, students' folders or teachers as TYPE or TYPE:CHECKPOINT, or else a shape; got {found}"
        )
    options = options.resolved()
    if shape is not None:
        subjects = shape_subjects(shape, plugins, device=str(options.device), dtype=str(options.dtype))
    else:
        subjects = find_subjects(targets, plugins)
    folder = folder or bench_folder(targets or [shape.name if shape is not None else ""])
    with disk_errors(folder), display.counting("bench") as progress:
        bench, kept = run_bench(subjects, options, folder, command=_command(), progress=progress)
    if kept is not None:
        display.note(f"a bench of other models, settings, versions or hardware is kept in {kept}")
    for cell in (cell for cell in bench.cells if cell.failed):
        display.warn(f"{cell.model}, {cell.engine}, {cell.tokens:,} tokens: {cell.failed}")
    if left := unfinished(bench, subjects, options):
        display.warn(f"the time was up before {', '.join(left)}; type the same command to go on")
    return BenchResult(bench, folder / FILE)


def bench_folder(targets: Sequence[str]) -> Path:
    """Inside the run where one run is measured, below bench/ of the current directory otherwise."""
    folders = [Path(target).expanduser() for target in targets]
    if len(folders) == 1 and (folders[0] / "recipe.toml").is_file():
        return folders[0] / FOLDER
    return Path(FOLDER) / "+".join(file_name(_short(target)) for target in targets)


def bench_tables(bench: Bench) -> RenderableType:
    """Tables of each engine, and how it was measured."""
    parts: list[RenderableType] = []
    for engine in bench.engines:
        for shown in speed_tables(bench, engine):
            table = Table(title=Text(shown.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
            for name in shown.head:
                table.add_column(name, justify="left" if name == "model" else "right")
            before = ""
            for row in shown.rows:
                if before and row[0] != before:
                    table.add_section()
                table.add_row(*map(Text, row))
                before = row[0]
            parts.append(table)
    return Group(*parts, Text(f"{machine(bench)}. {how_measured(bench)}", style="dim"))


def _short(target: str) -> str:
    """ "hovle" of "hovle", "name" of "runs/name" and of "runs/name/student"."""
    path = Path(target.rstrip("/"))
    return path.parent.name if path.name == "student" and path.parent.name else path.name


def _command() -> str:
    """What was typed, as far as it is the command line's."""
    arguments = sys.argv[1:]
    return shlex.join(["linearize", *arguments]) if arguments[:1] == ["bench"] else ""
