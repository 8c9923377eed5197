"""Ctrl-C that stops an answer and not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Interrupt:
    """Whether Ctrl-C was pressed."""

    happened: bool = False


@contextmanager
def first_ctrl_c_is_noted() -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C is noted and nothing else; the second one raises KeyboardInterrupt as ever.

    A signal reaches the main thread alone; in another one nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, frame: Any) -> None:
        if interrupt.happened:
            raise KeyboardInterrupt
        interrupt.happened = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
