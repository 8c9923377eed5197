"""The command line: parse, call, print. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from linearize._version import __version__
from linearize.cli.bench import bench
from linearize.cli.light import leave_out_what_only_runs_need, only_reads
from linearize.cli.numbers import NumbersInARow
from linearize.errors import TRACEBACK_VARIABLE, LinearizeError
from linearize.pipeline.display import ConsoleDisplay, make_console
from linearize.pipeline.quiet import hide_weight_bars, quieten_libraries
from linearize.pipeline.streams import take_any_character

if TYPE_CHECKING:
    from linearize.plugin.discovery import PluginRecord

INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended, as shells count it."""

app = typer.Typer(
    name="linearize", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Turn a pretrained multimodal LLM into one that runs in linear time: seed, distil, evaluate, report.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Training data.")
app.add_typer(data_app, name="data")
new_app = typer.Typer(no_args_is_help=True, help="A plug-in package to start from.")
app.add_typer(new_app, name="new")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as stages.distill.steps=200; may be repeated."),
]


def main() -> None:
    """Entry point of ``linearize`` and ``python -m linearize``."""
    if only_reads(sys.argv[1:]):
        leave_out_what_only_runs_need()
    take_any_character()
    app(prog_name="linearize")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"linearize {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old run folder is kept beside.")] = False,
) -> None:
    """Seed, distil, evaluate, save and report. Killed? The same command goes on where it stopped."""
    with _user_errors(how_to_go_on="Type the same command to go on from the last checkpoint."):
        quieten_libraries()
        hide_weight_bars()
        from linearize import api

        api.run(recipe, overrides or (), fresh=fresh, display=ConsoleDisplay())


@app.command()
def compare(
    recipe: RecipeFile,
    mixers: Annotated[
        str | None,
        typer.Option("--mixer", metavar="A,B,...", help="Mixers to compare, instead of what [compare] says of them."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Runs per cell.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time, on the visible GPUs in turn.")] = 1,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the cells; run nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old folder is kept beside.")] = False,
) -> None:
    """Run variants of a recipe alike and compare them in one table. Killed? The same command goes on."""
    with _user_errors(how_to_go_on="Type the same command to go on."):
        quieten_libraries()
        from linearize import api
        from linearize.comparison.cells import plan_comparison
        from linearize.comparison.table import plan_table, terminal_table

        names = None if mixers is None else [name.strip() for name in mixers.split(",") if name.strip()]
        console = make_console()
        display = ConsoleDisplay(console)
        if dry_run:
            comparison = plan_comparison(recipe, overrides or (), names, seeds)
            console.print(plan_table(comparison))
            for caveat in comparison.cells[0].checked.plan.caveats:  # of the teacher, which all cells share
                display.warn(caveat)
            remarks = [(cell.name, remark) for cell in comparison.cells for remark in cell.checked.plan.remarks()]
            for cell, remark in remarks:
                display.note(f"note: cell '{cell}': {remark}")
            return
        result = api.compare(
            recipe, overrides or (), mixers=names, seeds=seeds, jobs=jobs, fresh=fresh, display=display
        )
        console.print(terminal_table(result, console.width))
        console.print(f"report: {result.folder / 'report' / 'index.html'}", soft_wrap=True, highlight=False)
        if result.failures:
            raise typer.Exit(1)


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Say everything that is wrong with a recipe, without loading a weight."""
    with _short_lived(), _user_errors():
        quieten_libraries()
        hide_weight_bars()
        from linearize import api
        from linearize.data.bad_record_file import left_out

        checked = api.check(recipe, overrides or ())
        plan = checked.plan
        stages = ", ".join(stage.stage.name for stage in plan.stages)
        typer.echo(f"{recipe} is OK: {len(plan.linear)} of {len(plan.sites)} sites become linear; stages: {stages}")
        for warning in filter(None, (*plan.caveats, left_out(checked.source))):
            typer.echo(f"warning: {warning}")
        for remark in plan.remarks():
            typer.echo(f"note: {remark}")


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Show what a recipe would do: sites, parameters trained per stage, tokens, memory. Loads no weight."""
    with _short_lived(), _user_errors():
        quieten_libraries()
        hide_weight_bars()
        from linearize import api
        from linearize.data.bad_record_file import left_out

        checked = api.check(recipe, overrides or ()).with_tokens()
        display = ConsoleDisplay()
        display.plan(checked.recipe, checked.plan)
        if text := left_out(checked.source):
            display.warn(text)


@app.command()
def chat(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_STUDENT", help="A finished run, such as runs/my-run, or a student's folder."),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Goes with the first question; may be repeated."),
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="The teacher answers each question, too.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0: the likeliest token each time; above: drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Of the weights.  [default: as stored]"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Talk to a student, and to its teacher beside it. Standard input may be a pipe: one question a line."""
    with _user_errors():
        quieten_libraries()
        hide_weight_bars()
        from linearize.inference.session import prepare, talk
        from linearize.plugin.discovery import Plugins

        prepared = prepare(
            target, images=images or (), with_teacher=teacher, device=device, dtype=dtype, plugins=Plugins.discover()
        )
        from linearize.inference.speaker import Sampling

        if talk(prepared, Sampling(max_tokens, temperature, seed)):
            raise typer.Exit(1)


@app.command()
def plugins(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List what is installed, from where, what it brings, and what failed to load and why."""
    from linearize.plugin.discovery import Plugins

    records = Plugins.discover().records
    if as_json:
        typer.echo(json.dumps([_plugin_as_json(record) for record in records], indent=2, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("plug-in", "from", "kind", "name", "what it is"):
        table.add_column(heading)
    for record in records:
        origin = f"{record.origin} {record.version}".strip()
        rows_of = [(spec.kind, spec.name, spec.summary) for spec in record.specs] or [("", "", "brings nothing")]
        if record.failure:
            rows_of = [("", "", f"did not load: {record.failure}")]
        for number, row in enumerate(rows_of):
            table.add_row(*((record.name, origin) if number == 0 else ("", "")), *row)
        table.add_section()
    make_console().print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, with all that is installed, for editors: `#:schema FILE` names it."""
    from linearize.plugin.discovery import Plugins
    from linearize.recipe.schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(Plugins.discover()), indent=2, ensure_ascii=False))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/my-run.")],
) -> None:
    """Make the report of a run folder anew, finished or not."""
    with _user_errors():
        quieten_libraries()
        from linearize.files.run_folder import disk_errors
        from linearize.report.page import write_report
        from linearize.report.results import write_results

        with disk_errors(run_folder):
            results = write_results(run_folder)
            write_report(run_folder)
        ConsoleDisplay().results(results, run_folder / "report" / "index.html")


@data_app.command("export")
def export(
    recipe: RecipeFile,
    count: Annotated[int, typer.Option("--count", min=1, help="How many conversations, from the first on.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new or empty folder.")],
    overrides: Overrides = None,
) -> None:
    """Write a recipe's conversations as files that data.type = "llava_json" reads back unchanged."""
    with _user_errors(how_to_go_on="Type the same command to go on."):
        quieten_libraries()
        from linearize.data.bad_record_file import left_out
        from linearize.data.export import export_llava
        from linearize.plugin.discovery import Plugins
        from linearize.recipe.load import load_recipe

        source = load_recipe(recipe, overrides or (), Plugins.discover()).components["data"].build()
        display = ConsoleDisplay()
        with display.counting("export") as progress:
            exported = export_llava(source, count, to, progress=lambda done: progress("conversations", done, count))
        if text := left_out(source):
            display.warn(text)
        made = f"{exported.num_conversations:,} conversations with {exported.num_images:,} images"
        typer.echo(f"{made}: {exported.records}")


@new_app.command("mixer")
def new_mixer(
    name: Annotated[str, typer.Argument(metavar="NAME", help="lower_snake_case, such as my_mixer.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where its folder goes.")] = Path("."),
) -> None:
    """Write the package of a new mixer: options, recurrence, and a test file on the conformance kit that passes."""
    with _user_errors():
        from linearize import scaffold

        folder = scaffold.new_mixer(name, to)
        typer.echo(f"{folder}: pip install -e '{folder}[test]' && pytest {folder}")


@new_app.command("teacher")
def new_teacher(
    name: Annotated[str, typer.Argument(metavar="NAME", help="lower_snake_case, such as my_model.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where its folder goes.")] = Path("."),
) -> None:
    """Write the package of a new teacher: adapter, small model, recipe, and tests on the conformance kit that pass."""
    with _user_errors():
        quieten_libraries()
        from linearize import scaffold

        folder = scaffold.new_teacher(name, to)
        typer.echo(f"{folder}: pip install -e '{folder}[test]' && pytest {folder}")


def _plugin_as_json(record: PluginRecord) -> dict[str, Any]:
    components = [
        {"kind": spec.kind, "name": spec.name, "summary": spec.summary, "source": spec.source} for spec in record.specs
    ]
    return {
        "name": record.name, "origin": record.origin, "version": record.version, "failure": record.failure,
        "components": components,
    }  # fmt: skip


@contextmanager
def _short_lived() -> Iterator[None]:
    """Collects no garbage in a command that ends soon; looking for it among what is imported takes a seventh of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _user_errors(how_to_go_on: str = "") -> Iterator[None]:
    """Turns what the user can put right, and Ctrl-C, into a text on stderr and an exit status."""
    try:
        yield
    except LinearizeError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {how_to_go_on}".rstrip(), err=True)
        raise typer.Exit(INTERRUPTED) from None


app.command("bench", cls=NumbersInARow)(_user_errors("Type the same command to go on.")(bench))
