"""A process that reads a recipe and ends: what transformers imports for training and serving stays out of it.

transformers imports torch's compiler, its distributed tensors, accelerate and scipy (5.24: half of the time that
`linearize check` would take), none of which a process needs that computes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from linearize.cli.first_use import put_off_the_compiler

READING = ("check", "plan")
"""Commands that load no weight."""
PACKAGES = ("accelerate", "scipy")
QUESTIONS = (
    "is_accelerate_available", "is_scipy_available", "is_torch_distributed_available",
)  # fmt: skip
"""What transformers asks before it imports these; it keeps the answers."""


def only_reads(arguments: Sequence[str]) -> bool:
    """Whether a command line, without the program's name, ends without having computed anything."""
    command = next(iter(arguments), "")
    if "--help" in arguments:
        return False  # which imports no torch
    return command in READING or (command == "compare" and "--dry-run" in arguments)


def leave_out_what_only_runs_need() -> None:
    """Puts off torch's compiler, and lets transformers believe that it has nothing to distribute, for this process.

    Other packages and plug-ins import what they like.
    """
    put_off_the_compiler()
    with _missing(PACKAGES), _without_distribution():
        from transformers.utils import import_utils

        for question in QUESTIONS:
            ask = getattr(import_utils, question, None)
            if ask is not None:  # not every release asks every question
                ask()


@contextmanager
def _missing(packages: Sequence[str]) -> Iterator[None]:
    """Inside, these packages cannot be found, unless they are imported already."""
    hidden = [package for package in packages if package not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]


@contextmanager
def _without_distribution() -> Iterator[None]:
    import torch

    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
