"""Finished pieces of an evaluation as files, found again only by whoever would do the same work. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.files.json_file import read_sealed

if TYPE_CHECKING:
    from linearize.protocols.conversation import Conversation


def asked_of(questions: Sequence[Conversation]) -> list[list[str]]:
    """What tells whether stored results answer the same questions: id, last question and right answer of each."""
    return [[item.id, item.turns[-1].question, item.turns[-1].answer] for item in questions]


def same_work(path: Path, identity: Mapping[str, Any]) -> Any:
    """The stored work when it is the same work, else None."""
    stored = read_sealed(path)
    if stored is not None and all(stored.get(name) == value for name, value in identity.items()):
        return stored
    return None
