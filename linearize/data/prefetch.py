"""Drawing and collating ahead of the training loop, in one background thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing in the queue: the iterable is over, or ``error`` ended it."""

    error: BaseException | None = None


class Prefetcher(Iterator[T], Generic[T]):
    """The items of an iterable in their order, up to ``depth`` of them computed before they are asked for.

    The thread starts at the first ``next`` and ends with the iterable, with ``close``, when the prefetcher is
    garbage-collected, and at interpreter exit; each waits for the item that is being computed just then. An exception
    of the iterable is raised by the ``next`` that would have yielded the item. The iterable must not read global random
    state, because it then runs out of step with the consumer.

    Args:
        iterable: iterated in the background thread only.
        depth: how many items may wait, at least 1; each costs the memory of one item.

    Raises:
        ValueError: ``depth`` is less than 1.
    """

    def __init__(self, iterable: Iterable[T], depth: int) -> None:
        if depth < 1:
            raise ValueError(f"prefetch depth {depth} asked for; expected at least 1")
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._stop = threading.Event()
        # The thread knows none of self, so that dropping the last reference to self can stop it. It is a daemon only
        # because the interpreter waits for the others before it runs finalizers; the finalizer joins it in time.
        self._thread = threading.Thread(
            target=_work, args=(iterable, self._items, self._slots, self._stop), name="linearize-prefetch", daemon=True
        )
        self._started = self._ended = False
        self._finalizer = weakref.finalize(self, _shut_down, self._thread, self._slots, self._stop)

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        if self._ended or self._stop.is_set():
            raise StopIteration
        if not self._started:
            self._started = True
            self._thread.start()
        item = self._items.get()
        if isinstance(item, _End):
            self._ended = True
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        self._slots.release()
        return item

    def close(self) -> None:
        """Stops the thread and waits for it; items that wait are dropped. Further calls do nothing."""
        self._finalizer()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def prefetch(iterable: Iterable[T], depth: int = 2) -> Prefetcher[T]:
    """The same items in the same order, computed ahead: ``with prefetch(map(collate, steps), 2) as batches: ...``."""
    return Prefetcher(iterable, depth)


def _work(
    iterable: Iterable[T], items: queue.SimpleQueue[T | _End], slots: threading.Semaphore, stop: threading.Event
) -> None:
    end = _End()
    try:
        iterator = iter(iterable)
        while True:
            slots.acquire()
            if stop.is_set():
                return
            try:
                item = next(iterator)
            except StopIteration:
                return
            items.put(item)
            del item  # a batch is not kept alive while the thread waits for a slot
    except BaseException as error:
        # Whatever it is belongs to the consumer; this thread has nobody to tell.
        end = _End(error)
    finally:
        items.put(end)


def _shut_down(thread: threading.Thread, slots: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    slots.release()
    # The garbage collector may run this inside the very thread that it stops; that thread sees the flag by itself.
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join()
