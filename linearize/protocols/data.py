"""Where conversations, and rows of text, come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from linearize.protocols.conversation import Conversation
    from linearize.protocols.text import Sample


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Where a record that cannot be used, or not as it is, stands, and what is wrong with it.

    Attributes:
        source: the file or dataset.
        unit: what ``line`` counts: lines of a file, or rows of a table.
        line: its first line in the file, from 1, or its row in the dataset, from 0.
        fault: the class of the fault, in a few words that are the same for every record with it.
        counts: whether it counts towards what the recipe puts up with.
        left_out: whether another takes its place; else it is used, but not all of it.
    """

    source: str
    unit: str
    line: int
    fault: str
    reason: str
    counts: bool = True
    left_out: bool = True


class DataSource(Protocol):
    """Conversations, or rows of text, by number: the same index always gives the same sample."""

    size: int | None
    """How many there are; None when they are drawn without end."""

    def __getitem__(self, index: int) -> Sample: ...


class ShuffledSource(Protocol):
    """What a data source of a certain size offers besides, when its order is not one to train in."""

    shuffle: bool
    """Whether each pass goes through the samples in a new order; without this member: in their own."""


@runtime_checkable
class LeavesOut(Protocol):
    """What a data source offers besides, when records of it may turn out to be of no use.

    The run keeps the account of them in its folder.
    """

    def bad_records(self) -> Sequence[BadRecord]:
        """What was left out or cut so far, in the order in which it was found; later ones are only added behind."""
        ...


@runtime_checkable
class SharesAccount(Protocol):
    """What a data source that leaves records out offers besides, when copies of it read in other processes."""

    def take_over(self, records: Sequence[BadRecord]) -> None:
        """Adds what copies found to the source's own account; those of other files and datasets are passed by.

        Raises:
            DataError: together, more are bad than the recipe puts up with.
        """
        ...


@runtime_checkable
class FitsTeacher(Protocol):
    """What a data source offers besides, when it leaves out conversations that its teacher cannot take.

    Such a one gives way to the next good one, always the same.
    """

    def fit_to(self, num_tokens: Callable[[Conversation], int]) -> None:
        """From now on leaves out what ``num_tokens`` raises DataError for, and what it finds longer than is wanted."""
        ...

    def outline(self, index: int) -> Sample:
        """``self[index]`` with blank images of the right sizes; decodes none."""
        ...


@runtime_checkable
class Mixes(Protocol):
    """What a data source offers besides, when it gives the samples of other sources."""

    sources: Mapping[str, DataSource]
    """By the names that people know them by."""


def sources_in(source: DataSource) -> Iterator[DataSource]:
    """The sources that a source mixes, whatever those mix in turn; itself where it mixes none."""
    if isinstance(source, Mixes):
        for inner in source.sources.values():
            yield from sources_in(inner)
    else:
        yield source
