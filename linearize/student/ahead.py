"""Decoding a step ahead of what is known: whether a token was the last one is read while the next one is computed.

A GPU that is asked after each token whether rows go on has nothing to do until Python has started the next step, which
takes longer than a small model's step itself. transformers 5.24 can ask a step late, and takes the one step too many
back, but does so on "mps" alone. Where nobody will see the cache, nothing but that step's time depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import Any

import torch
from transformers.generation import utils as generation_utils

ACCELERATORS = ("cuda", "xpu")
ASKED = ("device", "cache", "cache_is_returned", "is_assistant")
"""What transformers 5.24 asks its criterion with."""

_is_ahead: ContextVar[bool] = ContextVar("a step ahead", default=False)
"""Whether the ``generate()`` that runs now may be."""


@contextmanager
def a_step_ahead(wanted: bool = True) -> Iterator[None]:
    """Lets a ``generate()`` in the block run ahead on an accelerator, unless its cache is returned."""
    token = _is_ahead.set(wanted)
    try:
        yield
    finally:
        _is_ahead.reset(token)


def _teach(check: Any) -> None:
    """Has transformers' own criterion ask here first; other models are outside of every block.

    A criterion that is asked otherwise is one of a later transformers, and left as it is: students then take no step
    ahead, and other models are none the wiser.
    """
    own = getattr(check, "is_supported", None)
    if own is None or tuple(signature(own).parameters) != ASKED:
        return

    def is_supported(device: torch.device, cache: Any, cache_is_returned: bool, is_assistant: bool) -> bool:
        if _is_ahead.get() and device.type in ACCELERATORS and not (cache_is_returned or is_assistant):
            return True
        return bool(own(device, cache, cache_is_returned, is_assistant))

    check.is_supported = staticmethod(is_supported)


if hasattr(generation_utils, "DeferredStopCheck"):
    _teach(generation_utils.DeferredStopCheck)
