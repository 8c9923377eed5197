"""``linearize bench``: what is typed, and what is shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linearize.cli.numbers import read_numbers
from linearize.pipeline.display import ConsoleDisplay, make_console
from linearize.pipeline.quiet import hide_weight_bars, quieten_libraries


def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="A run (student and teacher), a comparison, a student's folder, or a teacher as TYPE[:CHECKPOINT].",
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="NAME", help="Instead: random weights of a shape, with --mixer.")
    ] = None,
    mixer: Annotated[
        str | None, typer.Option("--mixer", help="Of the shape's students: a type, a TOML table, or none.")
    ] = None,
    layouts: Annotated[
        list[str] | None,
        typer.Option("--layout", help="A student's: a type or a TOML table; may be repeated. Else all, and every 4th."),
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="Of the shape's mixers.")] = "",
    conv_backend: Annotated[str, typer.Option("--conv-backend", help="Of their convolutions.")] = "",
    lengths: Annotated[
        str | None, typer.Option("--lengths", metavar="N...", help="Tokens of the prompts: 2048 32768, or 2048,32768.")
    ] = None,
    engines: Annotated[
        str, typer.Option("--engines", metavar="A,B", help="eager: a growing cache; static: one of fixed size, graphs.")
    ] = "eager,static",
    new_tokens: Annotated[int | None, typer.Option("--new-tokens", min=5, help="Tokens of an answer.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Answers of each model and engine.")] = None,
    max_batch: Annotated[
        int | None,
        typer.Option("--max-batch", min=0, help="Rows of the largest batch to try; 0: single rows alone."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="CELL", help="Leave out MODEL[:ENGINE[:LENGTH]]; may be repeated."),
    ] = None,
    prefill_chunk: Annotated[
        int, typer.Option("--prefill-chunk", min=0, help="Tokens that students read at a time; 0: all.")
    ] = 0,
    compiles: Annotated[bool, typer.Option("--compile", help="Compile the static engine on a CPU, too.")] = False,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Begin nothing after so many; typed again, it goes on.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="bfloat16 or float32.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cuda or cpu.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="For the results; RUN/bench for a run.")
    ] = None,
) -> None:
    """Measure time and memory of students and teachers by context length, all under the same engines."""
    quieten_libraries()
    hide_weight_bars()
    try:
        numbers = None if lengths is None else read_numbers(lengths)
    except ValueError:
        raise typer.BadParameter(f"expected numbers of tokens; got {lengths!r}", param_hint="--lengths") from None
    from linearize import api
    from linearize.inference.options import BenchOptions
    from linearize.inference.results import bench_tables
    from linearize.inference.shapes import LAYOUTS, ShapeOptions

    options = BenchOptions(
        engines=[name.strip() for name in engines.split(",") if name.strip()], lengths=numbers, new_tokens=new_tokens,
        rounds=rounds, max_rows=max_batch, skip=skip or (), compiles=compiles, prefill_chunk=prefill_chunk,
        minutes=minutes, dtype=dtype, device=device,
    )  # fmt: skip
    console = make_console()
    asked = ShapeOptions(shape, mixer or "", layouts or LAYOUTS, backend, conv_backend) if shape is not None else None
    if asked is None and (mixer or layouts or backend or conv_backend):
        raise typer.BadParameter("--mixer, --layout, --backend and --conv-backend are for the students of a --shape")
    result = api.bench(targets or (), options, shape=asked, out=out, display=ConsoleDisplay(console))
    console.print(bench_tables(result.bench))
    console.print(f"results: {result.file}\npage: {result.page}", soft_wrap=True, highlight=False)
    if all(cell.failed for cell in result.bench.cells):
        raise typer.Exit(1)
