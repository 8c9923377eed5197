"""Triton kernels that try few of their configurations: whoever asks what they compute does not wait for the fastest."""

from __future__ import annotations

import functools
from typing import Any


def limit_tuning(most: int = 3) -> None:
    """Lets kernels of this process try at most ``most`` configurations each, spread over those they have.

    A kernel of fla compiles and times dozens at the first call of each shape and dtype, which takes minutes. Call this
    before kernels are imported. Times mean nothing afterwards, and results say nothing of the configurations left out.
    Without triton it does nothing.

    Args:
        most: two or more, so that one that asks for too much shared memory is passed over.
    """
    try:
        from triton.runtime.autotuner import Autotuner
    except ImportError:
        return
    original = Autotuner.__init__

    @functools.wraps(original)
    def with_few(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **named: Any) -> None:
        original(self, fn, arg_names, spread(configs or [], most), *rest, **named)

    Autotuner.__init__ = with_few


def spread(items: list[Any], most: int) -> list[Any]:
    """At most ``most`` of ``items`` in their order, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]
