"""Several data sources as one, each with its share.

The samples are counted in blocks. In every block each source has the same number of places, in an order of the block's
own. So a sample's number tells which source it is from and how many samples of that source come before it, and
nothing has to be kept to resume.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from linearize.data.stream import SampleStream, permutation
from linearize.plugin.components import DataComponent
from linearize.plugin.config import Config
from linearize.protocols import (
    BadRecord,
    Conversation,
    DataSource,
    FitsTeacher,
    LeavesOut,
    Sample,
    SharesAccount,
    TellsContents,
)
from linearize.wording import counted, percent

BLOCK = 1024
"""Samples of a block; shares are multiples of its reciprocal."""


class MixConfig(Config):
    """Which sources are mixed, and how much of each."""

    sources: dict[str, DataComponent] = Field(
        min_length=1, description="name -> source: a table with its `type` and its options"
    )
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={}, description="name -> weight of its samples beside the others'; a source that is not named has 1"
    )
    seed: int = Field(default=0, description="of the order of the sources, and of each one's samples")

    @model_validator(mode="after")
    def _weights_belong_to_sources(self) -> Self:
        unknown = sorted(self.weights.keys() - self.sources.keys())
        if unknown:
            raise ValueError(
                f"weights are given for {', '.join(map(repr, unknown))}; the sources are {', '.join(self.sources)}"
            )
        rare = [name for name, places in places_of(self.all_weights()).items() if not places]
        if rare:
            raise ValueError(
                f"{', '.join(map(repr, rare))} would be less than one sample of {BLOCK}; raise the weight, or leave "
                "the source out"
            )
        return self

    def all_weights(self) -> dict[str, float]:
        """The weight of every source."""
        return {name: self.weights.get(name, 1.0) for name in self.sources}


def places_of(weights: Mapping[str, float]) -> dict[str, int]:
    """How many places of a block each source has: its share, rounded so that all are taken."""
    total = sum(weights.values())
    shares = {name: BLOCK * weight / total for name, weight in weights.items()}
    places = {name: int(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda name: places[name] - shares[name])[: BLOCK - sum(places.values())]:
        places[name] += 1
    return places


class MixSource:
    """Samples of several sources without end; each source's own samples come in the order of a run of its own.

    Attributes:
        sources: by name.
    """

    size = None

    def __init__(self, config: MixConfig) -> None:
        self.config = config
        self.sources: dict[str, DataSource] = {name: one.build() for name, one in config.sources.items()}
        self._places = places_of(config.all_weights())
        self._of_place = np.repeat(np.arange(len(self._places)), list(self._places.values()))
        self._names = list(self._places)
        self._bad: list[BadRecord] = []
        self._num_followed = dict.fromkeys(self.sources, 0)

    def __getitem__(self, index: int) -> Sample:
        """Sample number ``index``.

        Raises:
            IndexError: the index is negative.
        """
        name, counter = self.place(index)
        return self._streams[name][counter]

    def place(self, index: int) -> tuple[str, int]:
        """The source of a sample, and how many of its samples come before.

        Raises:
            IndexError: the index is negative.
        """
        if index < 0:
            raise IndexError(f"sample {index} asked for; samples are counted from 0")
        block, place = divmod(index, BLOCK)
        order = self._order(block)
        number = int(order[place])
        name = self._names[number]
        return name, block * self._places[name] + int((order[:place] == number).sum())

    def outline(self, index: int) -> Sample:
        """The same with blank images of the right sizes, where its source can do without decoding them."""
        name, counter = self.place(index)
        stream = self._streams[name]
        source = stream.source
        return source.outline(stream.index(counter)) if isinstance(source, FitsTeacher) else stream[counter]

    def fit_to(self, num_tokens: Callable[[Conversation], int]) -> None:
        """Lets every source that can leave out, or cut, what does not fit."""
        for source in self.sources.values():
            if isinstance(source, FitsTeacher):
                source.fit_to(num_tokens)

    def bad_records(self) -> list[BadRecord]:
        """What all sources left out or cut, as far as it was asked for in this order.

        Each tells its source by its name here too: two may read one file, and leave out different records of it.
        """
        for name, source in self.sources.items():
            if isinstance(source, LeavesOut):
                records = source.bad_records()
                new = records[self._num_followed[name] :]
                self._bad += [replace(record, source=f"{name}: {record.source}") for record in new]
                self._num_followed[name] = len(records)
        return list(self._bad)

    def take_over(self, records: Sequence[BadRecord]) -> None:
        """Lets every source add what copies of it found."""
        for name, source in self.sources.items():
            if isinstance(source, SharesAccount):
                before = f"{name}: "
                own = [record for record in records if record.source.startswith(before)]
                source.take_over([replace(record, source=record.source.removeprefix(before)) for record in own])

    def contents(self) -> str:
        """What each source holds, and its share."""
        return "; ".join(
            f"{percent(self._places[name] / BLOCK)} {name} ({_contents(source)})"
            for name, source in self.sources.items()
        )

    @functools.cached_property
    def _streams(self) -> dict[str, SampleStream]:
        """Each source in its order; made when the first sample is asked for, since text has to be read for its size."""
        return {
            name: SampleStream(source, seed=self.config.seed, shuffle=getattr(source, "shuffle", False))
            for name, source in self.sources.items()
        }

    @functools.lru_cache(maxsize=4)  # noqa: B019  a run has one
    def _order(self, block: int) -> NDArray[np.int64]:
        """Which source has which place of a block."""
        order: NDArray[np.int64] = self._of_place[permutation(self.config.seed, block, BLOCK)]
        return order


def _contents(source: DataSource) -> str:
    if isinstance(source, TellsContents):
        return source.contents()
    return "without end" if source.size is None else counted(source.size, "conversation")
