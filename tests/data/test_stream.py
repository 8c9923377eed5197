from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from linearize.data.stream import SampleStream, micro_batches
from linearize.errors import DataError
from linearize.protocols.conversation import Conversation, Turn

GOLDEN_SEED_0 = [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
GOLDEN_SEED_7 = [1, 7, 9, 6, 8, 0, 4, 3, 2, 5]


class Numbers:
    """A source whose conversation number i asks i."""

    def __init__(self, size: int | None) -> None:
        self.size = size

    def __getitem__(self, index: int) -> Conversation:
        return Conversation((Turn(str(index), "yes"),))


def order(size: int | None, counters: range, *, seed: int = 0, shuffle: bool = True) -> list[int]:
    stream = SampleStream(Numbers(size), seed=seed, shuffle=shuffle)
    return [stream.index(counter) for counter in counters]


def test_an_endless_source_is_taken_in_its_own_order() -> None:
    assert order(None, range(5, 9)) == [5, 6, 7, 8]
    assert SampleStream(Numbers(None), seed=0, shuffle=True).index(10**12) == 10**12


def test_without_shuffle_epochs_repeat_in_order() -> None:
    assert order(3, range(7), shuffle=False) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_each_shuffled_epoch_holds_every_sample_once(size: int) -> None:
    seen = order(size, range(3 * size))
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = order(50, range(50)), order(50, range(50, 100))
    others = [order(50, range(50), seed=seed) for seed in (1, -1, 2)]
    for one, other in itertools.combinations([first, second, *others], 2):
        assert one != other


def test_every_order_of_three_samples_is_about_equally_frequent() -> None:
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for epoch in range(1200):
        counts[tuple(order(3, range(3 * epoch, 3 * epoch + 3)))] += 1
    # 200 expected each, standard deviation about 13: five of them either way.
    assert all(135 < count < 265 for count in counts.values())


def test_any_counter_can_be_asked_for_without_those_before_it() -> None:
    whole = order(11, range(60))
    for counter in (59, 0, 33, 12, 58):
        assert order(11, range(counter, counter + 1)) == [whole[counter]]
    stream = SampleStream(Numbers(11), seed=0, shuffle=True)
    assert [stream.index(counter) for counter in reversed(range(60))] == whole[::-1]


def test_the_order_is_the_one_that_earlier_versions_drew() -> None:
    # Golden values: a change here would change the data order of every run that is resumed.
    assert order(10, range(10), seed=0) == GOLDEN_SEED_0
    assert order(10, range(10), seed=7) == GOLDEN_SEED_7


def test_millions_of_samples_take_a_moment() -> None:
    begin = time.perf_counter()
    stream = SampleStream(Numbers(2_000_000), seed=3, shuffle=True)
    indices = [stream.index(counter) for counter in range(1_000_000, 1_100_000)]
    assert len(set(indices)) == 100_000
    assert time.perf_counter() - begin < 10  # about 0.4 s on one slow core


def test_take_gives_the_conversations_of_consecutive_counters() -> None:
    stream = SampleStream(Numbers(4), seed=0, shuffle=False)
    assert [conversation.turns[0].question for conversation in stream.take(2, 4)] == ["2", "3", "0", "1"]


def test_an_empty_source_and_a_negative_counter_are_refused() -> None:
    with pytest.raises(DataError, match="holds no conversation"):
        SampleStream(Numbers(0), seed=0, shuffle=True)
    with pytest.raises(ValueError, match="sample counter -1"):
        order(3, range(-1, 0))


def test_groups_hold_every_item_once_in_stable_order() -> None:
    items = list(enumerate([5, 100, 7, 98, 5, 50, 100, 6]))
    groups = micro_batches(items, lambda item: item[1], max_padding=0.3)
    assert groups == [[(1, 100), (3, 98), (6, 100)], [(5, 50)], [(0, 5), (2, 7), (4, 5), (7, 6)]]


@pytest.mark.parametrize("max_padding", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("max_tokens", [None, 120, 1000])
def test_no_group_breaks_a_limit_and_no_partition_has_fewer_groups(max_padding: float, max_tokens: int | None) -> None:
    lengths = [(37 * i * i + 11 * i) % 90 + 10 for i in range(9)]
    groups = micro_batches(lengths, lambda item: item, max_padding=max_padding, max_tokens=max_tokens)
    assert sorted(itertools.chain(*groups)) == sorted(lengths)

    def allowed(group: tuple[int, ...]) -> bool:
        fits = len(group) == 1 or max_tokens is None or len(group) * max(group) <= max_tokens
        return fits and min(group) >= (1 - max_padding) * max(group)

    assert all(allowed(tuple(group)) for group in groups)
    assert len(groups) == fewest_groups(tuple(sorted(lengths)), allowed)


def fewest_groups(lengths: tuple[int, ...], allowed: Callable[[tuple[int, ...]], bool]) -> int:
    """By trying every way to cut the sorted lengths."""
    best = len(lengths)
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
        if all(allowed(lengths[a:b]) for a, b in itertools.pairwise(edges)):
            best = min(best, len(edges) - 1)
    return best


def test_an_item_longer_than_max_tokens_forms_its_own_group() -> None:
    assert micro_batches([8, 20, 8], lambda item: item, max_padding=1.0, max_tokens=16) == [[20], [8, 8]]


def test_no_items_make_no_groups_and_bad_limits_are_refused() -> None:
    assert micro_batches([], lambda item: item) == []
    with pytest.raises(ValueError, match=r"max_padding 1\.5"):
        micro_batches([1], lambda item: item, max_padding=1.5)
    with pytest.raises(ValueError, match="max_tokens 0"):
        micro_batches([1], lambda item: item, max_tokens=0)
