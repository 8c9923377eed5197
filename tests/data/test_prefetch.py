from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from linearize.data.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "linearize-prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_the_items_are_the_same_in_the_same_order(depth: int) -> None:
    assert list(prefetch((i * i for i in range(20)), depth)) == [i * i for i in range(20)]
    assert threads() == []


def test_at_most_depth_items_are_computed_ahead() -> None:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            drawn.append(i)
            yield i

    with prefetch(numbers(), 3) as items:
        assert next(items) == 0
        wait_until(lambda: len(drawn) == 4)
        time.sleep(0.05)
        assert drawn == [0, 1, 2, 3]


def test_work_goes_on_while_the_consumer_is_busy() -> None:
    second_drawn = threading.Event()

    def numbers() -> Iterator[int]:
        yield 0
        second_drawn.set()
        yield 1

    with prefetch(numbers(), 1) as items:
        next(items)
        assert second_drawn.wait(5)


def test_an_exception_comes_at_the_item_that_raised_it_with_its_traceback() -> None:
    def numbers() -> Iterator[int]:
        yield 0
        yield 1
        raise KeyError("record 2")

    items = prefetch(numbers(), 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="record 2") as caught:
        next(items)
    assert caught.traceback[-1].name == "numbers"
    with pytest.raises(StopIteration):
        next(items)
    assert threads() == []


def test_leaving_the_with_block_ends_the_thread_and_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = prefetch(endless(), 2)

    def loop() -> None:
        with items:
            next(items)
            raise RuntimeError("the loop failed")

    with pytest.raises(RuntimeError, match="the loop failed"):
        loop()
    assert threads() == []
    assert closed.is_set()
    with pytest.raises(StopIteration):
        next(items)


def test_dropping_the_prefetcher_ends_the_thread() -> None:
    items = prefetch(iter(int, 1), 2)
    next(items)
    assert len(threads()) == 1
    del items
    gc.collect()
    assert threads() == []


def test_a_prefetcher_that_is_never_asked_starts_no_thread() -> None:
    items = prefetch(iter(int, 1), 2)
    assert threads() == []
    items.close()
    assert list(items) == []


def test_the_interpreter_exits_at_once_with_a_prefetcher_still_open() -> None:
    script = """
    import time
    from linearize.data.prefetch import prefetch
    def slow():
        while True:
            time.sleep(0.02)
            yield 0
    items = prefetch(slow(), 2)
    next(items)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="depth 0"):
        prefetch([1], 0)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "nothing happened within five seconds"
        time.sleep(0.005)
