"""What a bench measured, as bench.json holds it: read, compared with the teacher, put in tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from linearize.files.json_file import read_json
from linearize.plan.table import byte_size
from linearize.wording import ABSENT, counted

FOLDER = "bench"
"""Where a run folder keeps its bench."""
FILE = "bench.json"
FORMAT = 1
EAGER, STATIC = "eager", "static"
GIB = 2**30
OUT_OF_MEMORY = "out of memory"
BY_MEMORY, BY_OPTION = "memory", "option"


@dataclass(slots=True)
class BatchCell:
    """Decoding many rows at once.

    Attributes:
        rows: of the largest batch that was tried and fitted.
        limited_by: "memory", or "option" where a larger one was not tried.
        token_ms: by round, milliseconds in which every row gets a token.
        peak_bytes: as in ``SpeedCell``.
        failed: why there is no time; empty where there is.
    """

    rows: int = 0
    limited_by: str = BY_MEMORY
    token_ms: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    failed: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Over all rows; None where there is no time."""
        return 1e3 * self.rows / median(self.token_ms) if self.token_ms else None


@dataclass(slots=True)
class SpeedCell:
    """One model under one engine behind prompts of one length, a row at a time.

    Attributes:
        tokens: of the prompt.
        first_ms: by round, milliseconds until the first token: the prompt is read in them.
        token_ms: by round, milliseconds of a further token.
        warm_up_s: seconds of the answer before the rounds, which compiles.
        cache_bytes: states, keys and values of the row at its end.
        peak_bytes: most memory of the accelerator, weights included, other models not; None on a CPU.
        failed: why there are no times; empty where there are.
        batch: the same for many rows; None where that was not asked for.
    """

    model: str
    engine: str
    tokens: int
    first_ms: list[float] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)
    warm_up_s: float = 0.0
    cache_bytes: int | None = None
    peak_bytes: int | None = None
    failed: str = ""
    batch: BatchCell | None = None


@dataclass(frozen=True, slots=True)
class SpeedModel:
    """One model of a bench.

    Attributes:
        teacher: name of the model that it is compared with; "" for a teacher, and where there is none.
        what: what it is, in a few words.
        weight_bytes: of all parameters and buffers; 0 where it could not be loaded.
    """

    name: str
    teacher: str
    what: str
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Bench:
    """The content of bench.json.

    Attributes:
        settings: what all cells were measured with.
        environment: hardware and versions.
        command: what was typed last.
    """

    models: Sequence[SpeedModel]
    cells: Sequence[SpeedCell]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str

    @property
    def engines(self) -> list[str]:
        """Those that anything was measured under."""
        return list(dict.fromkeys(cell.engine for cell in self.cells))

    @property
    def lengths(self) -> list[int]:
        """Those of the prompts, ascending."""
        return sorted({cell.tokens for cell in self.cells})

    def cell(self, model: str, engine: str, tokens: int) -> SpeedCell | None:
        """One cell; None where it was not measured."""
        found = (cell for cell in self.cells if (cell.model, cell.engine, cell.tokens) == (model, engine, tokens))
        return next(found, None)

    def model(self, name: str) -> SpeedModel:
        """The model of that name."""
        return next(model for model in self.models if model.name == name)

    def of_teacher(self, cell: SpeedCell, engine: str = "") -> SpeedCell | None:
        """The teacher's cell beside a student's, under the same engine or a named one; None where there is none."""
        teacher = self.model(cell.model).teacher
        return self.cell(teacher, engine or cell.engine, cell.tokens) if teacher else None

    def times_faster(self, cell: SpeedCell, engine: str = "") -> float | None:
        """The teacher's milliseconds of a token over the student's."""
        return _ratio(self.of_teacher(cell, engine), cell, lambda one: median(one.token_ms) if one.token_ms else None)

    def times_more_tokens(self, cell: SpeedCell) -> float | None:
        """The student's tokens a second at its largest batch over the teacher's at its own."""
        return _ratio(cell, self.of_teacher(cell), lambda one: one.batch.tokens_per_second if one.batch else None)

    def failures(self) -> list[str]:
        """Of each cell that was tried and could not be measured, which it is and why."""
        found = []
        for cell in self.cells:
            place = f"{cell.model}, {cell.engine}, {cell.tokens:,} tokens"
            if cell.failed:
                found.append(f"{place}: {cell.failed}")
            elif cell.batch is not None and cell.batch.failed:
                found.append(f"{place}, {cell.batch.rows:,} rows: {cell.batch.failed}")
        return found

    def as_json(self) -> dict[str, Any]:
        """What is written, the number of the format first."""
        return {
            "format": FORMAT,
            "command": self.command,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "models": [asdict(model) for model in self.models],
            "cells": [asdict(cell) for cell in self.cells],
        }


def read_bench(folder: Path) -> Bench | None:
    """The bench in a folder; None where there is none, or one that cannot be read."""
    content = read_json(folder / FILE)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    try:
        cells = []
        for table in content["cells"]:
            batch = table.get("batch")
            cells.append(
                SpeedCell(**{**_known(SpeedCell, table), "batch": batch and BatchCell(**_known(BatchCell, batch))})
            )
        models = [SpeedModel(**_known(SpeedModel, table)) for table in content["models"]]
        return Bench(models, cells, content["settings"], content["environment"], content["command"])
    except (KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class SpeedTable:
    """Cells of one engine; times as medians over rounds, and ratios to the teacher of the same bench."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def speed_tables(bench: Bench, engine: str) -> list[SpeedTable]:
    """A table of single rows, and one of batches where there are any; a line for each length and model."""
    cells = [
        cell
        for tokens in bench.lengths
        for model in bench.models
        if (cell := bench.cell(model.name, engine, tokens)) is not None
    ]
    compared = _is_compared(bench)
    crossed = compared and engine != EAGER and EAGER in bench.engines
    has_memory = any(cell.peak_bytes is not None for cell in cells)
    head = ["tokens", "model", "prefill ms", "ms/token", "range", *(["faster"] if compared else [])]
    head += [*([f"than {EAGER}"] if crossed else []), "state, cache", *(["memory"] if has_memory else [])]
    rows = [_row(bench, cell, compared, crossed, has_memory) for cell in cells]
    tables = [SpeedTable(f"{engine}, one row", head, rows)]
    if any(cell.batch is not None for cell in cells):
        head = ["tokens", "model", "rows", "tokens/s", *(["of teacher's"] if compared else []), "ms/token", "range"]
        head += ["memory"] if has_memory else []
        rows = [_batch_row(bench, cell, compared, has_memory) for cell in cells]
        tables.append(SpeedTable(f"{engine}, largest batch", head, rows))
    return tables


def machine(bench: Bench) -> str:
    """ "NVIDIA H200, bfloat16, torch 2.11.0, transformers 5.24.0, commit 2823b84"."""
    where, packages = bench.environment, bench.environment.get("packages") or {}
    device = where.get("processor", "CPU") if where.get("device") == "cpu" else where.get("device")
    parts = [device, bench.settings.get("dtype")]
    if where.get("device") == "cpu":
        parts.append(counted(int(where["threads"]), "thread") if "threads" in where else "")
    parts += [f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages]
    parts.append(f"commit {where['commit']}" if where.get("commit") else "")
    return ", ".join(str(part) for part in parts if part)


def how_measured(bench: Bench) -> str:
    """Sentences on rounds, tokens and ranges."""
    rounds, new_tokens = counted(int(bench.settings.get("rounds") or 0), "round"), bench.settings.get("new_tokens")
    compared = " Faster: the teacher's time of a token over the model's." if _is_compared(bench) else ""
    return (
        f"Times are medians of {rounds}, ranges are over them. In a round every model answers once through generate(), "
        f"greedily, with {new_tokens} tokens.{compared}"
    )


def milliseconds(value: float) -> str:
    """Three digits: 5.17, 51.7, 517, 3638."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def gibibytes(count: int | None) -> str:
    """Two digits behind the point, in which models of one size differ."""
    return ABSENT if count is None else f"{count / GIB:.2f} GiB"


def times(ratio: float | None) -> str:
    """ "20.6x"."""
    return ABSENT if ratio is None else f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def _is_compared(bench: Bench) -> bool:
    return any(model.teacher for model in bench.models)


def _row(bench: Bench, cell: SpeedCell, compared: bool, crossed: bool, has_memory: bool) -> list[str]:
    row = [f"{cell.tokens:,}", cell.model, *_times(cell.failed, cell.first_ms, cell.token_ms)]
    row += [times(bench.times_faster(cell))] if compared else []
    row += [times(bench.times_faster(cell, EAGER))] if crossed else []
    row.append(ABSENT if cell.cache_bytes is None else byte_size(cell.cache_bytes))
    return row + ([gibibytes(cell.peak_bytes)] if has_memory else [])


def _batch_row(bench: Bench, cell: SpeedCell, compared: bool, has_memory: bool) -> list[str]:
    batch = cell.batch or BatchCell(failed=cell.failed)
    each = batch.tokens_per_second
    row = [f"{cell.tokens:,}", cell.model, f"{batch.rows:,}" if batch.rows else ABSENT]
    row.append(f"{each:,.0f}" if each else _briefly(batch.failed))
    row += [times(bench.times_more_tokens(cell))] if compared else []
    row += _times("", batch.token_ms)
    return row + ([gibibytes(batch.peak_bytes)] if has_memory else [])


def _times(failed: str, *rounds: Sequence[float]) -> list[str]:
    """The median of each kind of time, and the range of the last."""
    if failed or not all(rounds):
        return [_briefly(failed), *[ABSENT] * len(rounds)]
    last = rounds[-1]
    return [*(milliseconds(median(one)) for one in rounds), f"{milliseconds(min(last))}–{milliseconds(max(last))}"]


def _briefly(failed: str) -> str:
    return failed if failed in ("", OUT_OF_MEMORY) else "failed"


def _ratio(over: SpeedCell | None, under: SpeedCell | None, of: Any) -> float | None:
    top, bottom = (of(cell) if cell is not None else None for cell in (over, under))
    return top / bottom if top and bottom else None


def _known(kind: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in table.items() if name in names}
