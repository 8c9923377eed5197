"""Questions with answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from linearize.protocols.conversation import Conversation


class Benchmark(Protocol):
    """Questions with answers, in tasks, that training never sees."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks, in the order of the results."""
        ...

    @property
    def dials(self) -> Mapping[str, Sequence[int]]:
        """Tasks with a difficulty dial -> its positions, easy first."""
        ...

    def questions(self, task: str, difficulty: int | None = None) -> Sequence[Conversation]:
        """Single-turn conversations, at least one; the turn's answer is the right one.

        ``check`` asks for the first of each task, so a sequence that makes its questions when they are asked for is
        better than a list of pictures.
        """
        ...

    def is_correct(self, question: Conversation, answer: str) -> bool:
        """Whether ``answer``, as the model wrote it, is right."""
        ...
