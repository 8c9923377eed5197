"""Which sample comes when: the order of a run's samples, and the grouping of one step's samples by length.

A run counts its samples 0, 1, 2, ... over all its stages. Everything here is a function of that counter and of the
seed, so resuming takes one integer and no sampler state is ever saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from linearize.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from linearize.protocols import DataSource, Sample

T = TypeVar("T")


class SampleStream:
    """The endless sequence of a source's samples, addressed by the run's sample counter.

    An endless source is taken in its own order. A finite one is repeated epoch after epoch, each sample once per
    epoch: in order, or in a permutation drawn from (seed, epoch).

    Args:
        source: where the samples come from.
        seed: of the order alone; an endless source ignores it.
        shuffle: whether epochs of a finite source are permuted; an endless source ignores it.

    Raises:
        DataError: the source is finite and holds nothing.
    """

    def __init__(self, source: DataSource, *, seed: int, shuffle: bool) -> None:
        if source.size is not None and source.size < 1:
            raise DataError("the data source holds no conversation; a run needs at least one")
        self.source, self.seed, self.shuffle = source, seed, shuffle
        self.size = source.size
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def index(self, counter: int) -> int:
        """The source's index for one value of the sample counter.

        Raises:
            ValueError: the counter is negative.
        """
        if counter < 0:
            raise ValueError(f"sample counter {counter} asked for; counters start at 0")
        if self.size is None:
            return counter
        epoch, position = divmod(counter, self.size)
        return int(self._permutation(epoch, self.size)[position]) if self.shuffle else position

    def __getitem__(self, counter: int) -> Sample:
        return self.source[self.index(counter)]

    def take(self, start: int, count: int) -> list[Sample]:
        """The samples of ``count`` consecutive counters from ``start``: one optimizer step's samples."""
        return [self[counter] for counter in range(start, start + count)]

    def _permutation(self, epoch: int, size: int) -> NDArray[np.int64]:
        # The latest epoch is kept, since counters nearly always ascend: 8 bytes a sample, a fraction of a second for
        # millions. One assignment swaps it, so a prefetching thread and the loop may both ask.
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            kept = self._epoch = epoch, permutation(self.seed, epoch, size)
        return kept[1]


def micro_batches(
    items: Sequence[T],
    length: Callable[[T], int],
    *,
    max_padding: float = 0.25,
    max_tokens: int | None = None,
) -> list[list[T]]:
    """One step's samples in as few groups as the limits allow, so that little of a padded batch is padding.

    The groups are disjoint and together hold every item; the longest group comes first, so that running out of memory
    shows at once. Within a group the items keep their order. The outcome depends on the lengths and the order alone.

    Args:
        items: the samples of one optimizer step.
        length: tokens of one item, or anything proportional to them.
        max_padding: the largest share of a row that may be padding: every item of a group is at least
            ``(1 - max_padding)`` times as long as the longest one. 0 puts only equal lengths together, 1 sets no limit.
        max_tokens: the largest padded size of a group, rows times longest, in units of ``length``. An item that is
            longer by itself forms its own group. None sets no limit.

    Raises:
        ValueError: ``max_padding`` is outside [0, 1], or ``max_tokens`` is not positive.
    """
    if not 0.0 <= max_padding <= 1.0:
        raise ValueError(f"max_padding {max_padding} asked for; it is a share of a row, from 0 to 1")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens {max_tokens} asked for; expected at least 1")
    lengths = [length(item) for item in items]
    groups: list[list[int]] = []
    # Whatever part of a permitted group is permitted too, so filling each group from the longest item down is optimal.
    for position in sorted(range(len(items)), key=lambda position: (-lengths[position], position)):
        if groups:
            group, longest = groups[-1], lengths[groups[-1][0]]
            fits = max_tokens is None or (len(group) + 1) * longest <= max_tokens
            if fits and lengths[position] >= (1.0 - max_padding) * longest:
                group.append(position)
                continue
        groups.append([position])
    return [[items[position] for position in sorted(group)] for group in groups]


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The numbers below ``size`` in an order that depends on the three arguments alone."""
    # Ranks of raw random words: numpy promises that a bit generator's raw stream never changes between versions, which
    # it does not promise for Generator.permutation, and a resumed run must see the same order after an upgrade.
    words = np.random.Philox(np.random.SeedSequence((_unsigned(seed), epoch))).random_raw(size)
    return np.argsort(words, kind="stable")


def _unsigned(seed: int) -> int:
    # SeedSequence takes no negative numbers; zigzag keeps distinct seeds distinct.
    return 2 * seed if seed >= 0 else -2 * seed - 1
