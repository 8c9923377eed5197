"""A bench: every model, engine and length is a cell; cells of a length are measured in rounds, and kept as they finish.

In a round every model answers once, so that what disturbs the machine for a while disturbs all. All models are held at
the same time. Lengths go from the shortest to the longest; batches are measured when all single rows are.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from linearize.errors import RunError
from linearize.files.json_file import write_json
from linearize.inference.measure import (
    Answer,
    Peak,
    answer,
    answer_in_rows,
    prompt_ids,
    room_for_rows,
    telling_memory,
    weight_bytes,
)
from linearize.inference.options import BenchOptions
from linearize.inference.subjects import Subject
from linearize.pipeline.environment import describe_environment
from linearize.report.speed import (
    BY_MEMORY,
    BY_OPTION,
    FILE,
    OUT_OF_MEMORY,
    BatchCell,
    Bench,
    SpeedCell,
    SpeedModel,
    read_bench,
)

Progress = Callable[[str, int, int], None]
"""Called with (what is measured, cells done, cells in all)."""
SMALLER = 0.85
"""What is left of a batch that did not fit, when it is tried again."""


def run_bench(
    subjects: Sequence[Subject],
    options: BenchOptions,
    folder: Path,
    *,
    command: str = "",
    progress: Progress | None = None,
) -> tuple[Bench, Path | None]:
    """Measures what is left of a bench, and writes bench.json as groups of cells finish.

    Cells that an earlier call measured with the same models, settings, versions and hardware are kept.

    Args:
        options: resolved ones.

    Returns:
        The bench, and where one of other models or settings, which lay in the folder, is kept now.

    Raises:
        RunError: something to be skipped does not exist, or the disk cannot be written.
    """
    wanted = _wanted_cells(subjects, options)
    settings = _settings(subjects, options)
    environment = describe_environment(torch.device(str(options.device)))
    before, kept = read_bench(folder), None
    folder.mkdir(parents=True, exist_ok=True)
    if before is not None and (before.settings != settings or before.environment != environment):
        before, kept = None, _set_aside(folder / FILE)
    work = _Work(subjects, options, folder, progress)
    work.bench = Bench([], before.cells if before else [], settings, environment, command)
    work.run(wanted, before.models if before else [])
    return work.bench, kept


def unfinished(bench: Bench, subjects: Sequence[Subject], options: BenchOptions) -> list[str]:
    """Names of the cells that were asked for and not measured, when the time was up."""
    lacking = []
    for model, engine, tokens in _wanted_cells(subjects, options):
        cell = bench.cell(model, engine, tokens)
        if cell is None or (options.max_rows and cell.batch is None and not cell.failed):
            lacking.append(f"{model}:{engine}:{tokens}")
    return lacking


class _Work:
    """The models of a bench while it runs."""

    def __init__(
        self, subjects: Sequence[Subject], options: BenchOptions, folder: Path, progress: Progress | None
    ) -> None:
        self.subjects, self.options, self.folder = subjects, options, folder
        self.progress = progress
        self.device = torch.device(str(options.device))
        self.models: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.bench: Bench
        self.begun = time.monotonic()
        self.done = self.in_all = 0

    def run(self, wanted: Sequence[tuple[str, str, int]], known: Sequence[SpeedModel]) -> None:
        """Measures the cells that are not there yet, group by group."""
        groups = self._groups(wanted)
        self.in_all = sum(len(cells) for _, cells in groups)
        if groups:
            self._load()
        models = [self._described(subject, known) for subject in self.subjects]
        self.bench = replace(self.bench, models=models)
        # Several models of one class, and lengths of a static cache, compile the same code.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for in_rows, cells in groups:
            if self._time_is_up():
                break
            self._forget_shapes()
            measured = self._in_rows(cells) if in_rows else self._alone(cells)
            self._keep(measured)
        self.models.clear()

    def _time_is_up(self) -> bool:
        return self.options.minutes is not None and time.monotonic() - self.begun > 60 * self.options.minutes

    def _rounds(self) -> Iterator[int]:
        """At least one; no further one is begun when the time is up."""
        for number in range(self.options.rounds or 1):
            if number and self._time_is_up():
                return
            yield number

    def _groups(self, wanted: Sequence[tuple[str, str, int]]) -> list[tuple[bool, list[SpeedCell]]]:
        """What is left: single rows of each length, then batches of each. Models of an engine stay together."""
        groups: list[tuple[bool, list[SpeedCell]]] = []
        for in_rows in (False, True) if self.options.max_rows else (False,):
            for tokens in sorted({tokens for *_, tokens in wanted}):
                cells: list[SpeedCell] = []
                for engine in self.options.engines:
                    names = [name for name, other, length in wanted if (other, length) == (engine, tokens)]
                    found = [self.bench.cell(name, engine, tokens) for name in names]
                    is_done = [cell is not None and (not in_rows or bool(cell.failed or cell.batch)) for cell in found]
                    if not all(is_done):
                        cells += [SpeedCell(name, engine, tokens) for name in names]
                if cells:
                    groups.append((in_rows, cells))
        return groups

    def _load(self) -> None:
        dtype = getattr(torch, str(self.options.dtype))
        for subject in self.subjects:
            try:
                with telling_memory(self.device):
                    model = subject.load(dtype, self.device)
                    # A checkpoint's own settings (sampling, penalties, where answers end) are those of its makers.
                    model.generation_config = GenerationConfig()
                    self.models[subject.name] = model
            except MemoryError:
                self.failures[subject.name] = OUT_OF_MEMORY

    def _described(self, subject: Subject, known: Sequence[SpeedModel]) -> SpeedModel:
        model = self.models.get(subject.name)
        before = next((one.weight_bytes for one in known if one.name == subject.name), 0)
        size = before if model is None else weight_bytes(model)
        return SpeedModel(subject.name, subject.teacher, subject.what, size)

    def _alone(self, cells: Sequence[SpeedCell]) -> list[SpeedCell]:
        """Single rows: warms all cells up, then lets each answer in every round; gives none where time is up before."""
        for cell in cells:
            begin = time.monotonic()
            found = self._answer(cell, returns_cache=True)
            cell.cache_bytes = found.cache_bytes if found is not None else None
            cell.warm_up_s = time.monotonic() - begin
            self._tell(cell)
            if self._time_is_up():
                return []
        for _ in self._rounds():
            for cell in cells:
                found = None if cell.failed else self._answer(cell)
                if found is not None:
                    cell.first_ms.append(found.first_ms)
                    cell.token_ms.append(found.token_ms)
        return list(cells)

    def _answer(self, cell: SpeedCell, *, returns_cache: bool = False) -> Answer | None:
        model = self.models.get(cell.model)
        cell.failed = self.failures.get(cell.model, "")
        if model is None:
            return None
        way = self.options.way(cell.engine)
        found = self._noted(
            cell, model, lambda: answer(model, way, prompt_ids(model, cell.tokens), returns_cache=returns_cache)
        )
        if cell.failed:
            cell.first_ms = []
        return found

    def _in_rows(self, cells: Sequence[SpeedCell]) -> list[SpeedCell]:
        """Batches: finds the largest that fits by trying, then lets each cell answer in every round."""
        measured = []
        for cell in cells:
            alone = self.bench.cell(cell.model, cell.engine, cell.tokens)
            if alone is not None and not alone.failed and cell.model in self.models:
                measured.append(replace(alone, batch=self._largest_batch(alone)))
            self._tell(cell)
            if self._time_is_up():
                return []
        for _ in self._rounds():
            for cell in measured:
                batch = cell.batch
                assert batch is not None
                found = None if batch.failed else self._answer_in_rows(cell, batch)
                if batch.failed == OUT_OF_MEMORY and batch.rows > 1:
                    # What graphs of earlier rounds hold may leave too little; rounds are of fewer rows from here on.
                    self._make_fit(cell, batch)
                    found = None if batch.failed else self._answer_in_rows(cell, batch)
                if found is not None:
                    batch.token_ms.append(found.token_ms)
        return measured

    def _largest_batch(self, alone: SpeedCell) -> BatchCell:
        model, limit = self.models[alone.model], self.options.max_rows or 1
        fits = room_for_rows(model, self.device, alone.cache_bytes or 1)
        batch = BatchCell(min(limit, fits or limit), BY_OPTION)
        self._answer_in_rows(alone, batch)
        if batch.rows < limit:
            batch.limited_by = BY_MEMORY
        if batch.failed == OUT_OF_MEMORY:
            self._make_fit(alone, batch)
        return batch

    def _make_fit(self, cell: SpeedCell, batch: BatchCell) -> None:
        """Takes rows away from a batch until it can be answered."""
        batch.limited_by = BY_MEMORY
        while batch.failed == OUT_OF_MEMORY and batch.rows > 1:
            self._forget_shapes()
            batch.rows = max(1, int(SMALLER * batch.rows))
            self._answer_in_rows(cell, batch)

    def _answer_in_rows(self, cell: SpeedCell, batch: BatchCell) -> Answer | None:
        model, way = self.models[cell.model], self.options.way(cell.engine)
        return self._noted(batch, model, lambda: answer_in_rows(model, way, prompt_ids(model, cell.tokens), batch.rows))

    def _noted(self, cell: SpeedCell | BatchCell, model: Any, measure: Callable[[], Answer]) -> Answer | None:
        """What was measured; why it could not be, or the memory that it took, is noted in the cell."""
        peak = Peak(self.device)
        found, cell.failed = self._tried(measure)
        used = peak.bytes(model)
        if cell.failed:
            cell.token_ms, cell.peak_bytes = [], None
        elif used is not None:
            cell.peak_bytes = max(used, cell.peak_bytes or 0)
        return found

    def _tried(self, measure: Callable[[], Answer]) -> tuple[Answer | None, str]:
        """What was measured, or why it could not be: one cell's failure is not that of the others."""
        try:
            with telling_memory(self.device), torch.no_grad():
                return measure(), ""
        except MemoryError:
            return None, OUT_OF_MEMORY
        except Exception as error:
            text = str(error).strip().splitlines()
            return None, f"{type(error).__name__}: {text[0] if text else ''}"

    def _forget_shapes(self) -> None:
        """Compiled steps of other lengths: the compiler would take what differs for what may change at any step."""
        torch._dynamo.reset()
        for model in self.models.values():
            # generate() makes no static cache shorter than its last one was.
            vars(model).pop("_previous_max_cache_length", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _keep(self, measured: Sequence[SpeedCell]) -> None:
        def place(cell: SpeedCell) -> tuple[str, str, int]:
            return cell.model, cell.engine, cell.tokens

        new = {place(cell) for cell in measured}
        cells = [cell for cell in self.bench.cells if place(cell) not in new] + list(measured)
        self.bench = replace(self.bench, cells=sorted(cells, key=lambda cell: cell.tokens))
        write_json(self.folder / FILE, self.bench.as_json())

    def _tell(self, cell: SpeedCell) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(f"{cell.tokens:,} tokens, {cell.model}, {cell.engine}", self.done, self.in_all)


def _wanted_cells(subjects: Sequence[Subject], options: BenchOptions) -> list[tuple[str, str, int]]:
    """Model, engine and length of every cell that is not skipped.

    Raises:
        RunError: something to be skipped is no cell.
    """
    assert options.lengths is not None
    cells = [
        (subject.name, engine, tokens)
        for tokens in options.lengths
        for engine in options.engines
        for subject in subjects
    ]
    for text in options.skip:
        parts = text.split(":")
        left_out = [cell for cell in cells if [str(part) for part in cell][: len(parts)] == parts]
        if not left_out:
            names = ", ".join(subject.name for subject in subjects)
            raise RunError(
                f"skip: expected MODEL, MODEL:ENGINE or MODEL:ENGINE:LENGTH of a cell; got '{text}'. Models: {names}; "
                f"engines: {', '.join(options.engines)}; lengths: {', '.join(map(str, options.lengths))}"
            )
        cells = [cell for cell in cells if cell not in left_out]
    return cells


def _settings(subjects: Sequence[Subject], options: BenchOptions) -> dict[str, Any]:
    """All that a time depends on beside engine and length."""
    return {
        "dtype": options.dtype,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "max_rows": options.max_rows,
        "compiles": options.compiles,
        "prefill_chunk": options.prefill_chunk,
        "models": {subject.name: dict(subject.identity) for subject in subjects},
    }


def _set_aside(path: Path) -> Path:
    """Renames a file to the next free ``NAME.old-N.json``."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
        number += 1
    return path.rename(kept)
