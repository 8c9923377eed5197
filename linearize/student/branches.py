"""Leaving out one branch of mixers that have several: what a student would be without it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from linearize.student.convert import linearized_sites


def branches_of(mixer: Any) -> tuple[str, ...]:
    """The branches that a mixer can do without, one at a time; none for a mixer that is all one."""
    return tuple(getattr(mixer, "branches", ()))


def branch_names(model: nn.Module) -> tuple[str, ...]:
    """The branches of all mixers that the student route runs."""
    names = (name for slot in linearized_sites(model) if slot.linear for name in branches_of(slot.mixer))
    return tuple(dict.fromkeys(names))


@contextmanager
def leaving_out(mixer: Any, name: str) -> Iterator[None]:
    """Inside, a branch of one mixer gives zeros; a mixer without such a branch runs as ever."""
    if name not in branches_of(mixer):
        yield
        return
    before = mixer.left_out
    mixer.left_out = before | {name}
    try:
        yield
    finally:
        mixer.left_out = before


@contextmanager
def without_branch(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, a branch gives zeros at every site that has it.

    Raises:
        ValueError: no site has it; names those there are.
    """
    known: Collection[str] = branch_names(model)
    if name not in known:
        raise ValueError(f"unknown branch '{name}'; the student's branches are: {', '.join(known) or 'none'}")
    with ExitStack() as stack:
        for slot in linearized_sites(model):
            stack.enter_context(leaving_out(slot.mixer, name))
        yield
