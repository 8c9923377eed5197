"""Steps prepared in worker processes: drawing, pictures and tokens off the process that trains.

A step's batches follow from its number alone, so the order and a resumed run are what they are without workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from linearize.errors import DataError, LinearizeError
from linearize.protocols import BadRecord, Batch, DataSource, LeavesOut

AHEAD = 2
"""Steps that each worker prepares before they are asked for."""
TOKENIZERS = "TOKENIZERS_PARALLELISM"
"""A process that was forked must not use the threads of the tokenizers library; unset, it warns of them each time."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a worker hands over of one step.

    Attributes:
        bad: the records that this worker left out or cut since its last step.
        error: what kept it from making the batches; raised where the step's turn comes.
    """

    batches: list[Batch]
    bad: list[BadRecord]
    error: LinearizeError | None = None


class _Steps(Dataset[Prepared]):
    """One item a step; a copy of it lives in each worker."""

    def __init__(self, prepare: Callable[[int], list[Batch]], source: DataSource) -> None:
        self._prepare, self._source = prepare, source
        self._num_told = len(self._bad_records())

    def __getitem__(self, step: int) -> Prepared:
        batches: list[Batch] = []
        error: LinearizeError | None = None
        try:
            batches = self._prepare(step)
        except LinearizeError as found:
            error = found
        except Exception as found:
            error = DataError(
                f"the samples of step {step + 1} could not be made into batches: {type(found).__name__}: {found}"
            )
        records = self._bad_records()
        new, self._num_told = records[self._num_told :], len(records)
        return Prepared(batches, list(new), error)

    def _bad_records(self) -> Sequence[BadRecord]:
        return self._source.bad_records() if isinstance(self._source, LeavesOut) else ()


def is_worker() -> bool:
    """Whether this process prepares steps for another one."""
    return get_worker_info() is not None


@contextmanager
def prepared_by_workers(
    prepare: Callable[[int], list[Batch]],
    steps: range,
    *,
    num_workers: int,
    source: DataSource,
    found: Callable[[Sequence[BadRecord]], None],
) -> Iterator[Iterator[list[Batch]]]:
    """The batches of the steps in their order, made by processes that end with the context, or with this process.

    Args:
        prepare: step -> its batches; called in the workers alone.
        source: where the samples come from; each worker has a copy of it as it is now.
        found: is told what a worker newly left out or cut, before the step in which it did.

    Raises:
        LinearizeError: whatever ``prepare`` raised, at the turn of its step; or what ``found`` raises.
    """
    loader = DataLoader(
        _Steps(prepare, source),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",  # the source and the adapter's tokenizer are there without being sent
    )
    was = os.environ.get(TOKENIZERS)
    os.environ[TOKENIZERS] = "false"
    try:
        handed_over: Any = iter(loader)
    finally:
        if was is None:
            del os.environ[TOKENIZERS]
        else:
            os.environ[TOKENIZERS] = was

    def in_order() -> Iterator[list[Batch]]:
        for one in handed_over:
            if one.bad:
                found(one.bad)
            if one.error is not None:
                raise one.error
            yield one.batches

    try:
        yield in_order()
    finally:
        handed_over._shutdown_workers()
