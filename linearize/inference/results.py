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
from linearize.files.run_folder import COMPARISON, disk_errors
from linearize.inference.bench import run_bench, unfinished
from linearize.inference.options import BenchOptions
from linearize.inference.page import write_page
from linearize.inference.shapes import ShapeOptions, shape_subjects
from linearize.inference.subjects import find_subjects
from linearize.pipeline.display import Display
from linearize.plugin.discovery import Plugins
from linearize.report.page import write_report
from linearize.report.speed import FILE, FOLDER, Bench, how_measured, machine, speed_tables


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured, now and before, the file that holds it, and the page that shows it."""

    bench: Bench
    file: Path
    page: Path


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
    for failure in bench.failures():
        display.warn(failure)
    if left := unfinished(bench, subjects, options):
        display.warn(f"the time was up before {', '.join(left)}; type the same command to go on")
    with disk_errors(folder):
        page = write_page(bench, folder, bench_name(folder))
        if folder.name == FOLDER and is_run(folder.parent):
            write_report(folder.parent)
            display.note(f"the report of the run shows it, too: {folder.parent / 'report' / 'index.html'}")
        elif (folder.parent / COMPARISON).is_file():
            display.note("the comparison's page shows it, too, once its `linearize compare` is typed again")
    return BenchResult(bench, folder / FILE, page)


def bench_folder(targets: Sequence[str]) -> Path:
    """Inside the run or comparison where one is measured, below bench/ of the current directory otherwise."""
    folders = [Path(target).expanduser() for target in targets]
    if len(folders) == 1 and (is_run(folders[0]) or (folders[0] / COMPARISON).is_file()):
        return folders[0] / FOLDER
    return Path(FOLDER) / "+".join(file_name(_short(target)) for target in targets)


def bench_name(folder: Path) -> str:
    """What the page is called: the run's folder's name where the bench is a run's."""
    folder = folder.resolve()
    inside = is_run(folder.parent) or (folder.parent / COMPARISON).is_file()
    return folder.parent.name if folder.name == FOLDER and inside else folder.name


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's."""
    return (folder / "recipe.toml").is_file()


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
