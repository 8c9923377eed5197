"""Held-out questions and their scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import overload

from linearize.errors import UnknownNameError
from linearize.protocols.conversation import Conversation
from linearize_glance.config import GlanceBenchmarkConfig
from linearize_glance.drawing import TASKS, draw


class DrawnQuestions(Sequence[Conversation]):
    """Questions that are drawn when they are asked for, and then kept; the first at once, to see that it can be."""

    def __init__(self, draw_one: Callable[[int], Conversation], count: int) -> None:
        self._draw_one, self._count = draw_one, count
        self._drawn = {0: draw_one(0)} if count else {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        numbers = range(self._count)[index]
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        if numbers not in self._drawn:
            self._drawn[numbers] = self._draw_one(numbers)
        return self._drawn[numbers]


class GlanceBenchmark:
    """Single questions of every task, at the usual difficulty or at a level of one's choice."""

    def __init__(self, config: GlanceBenchmarkConfig) -> None:
        self.config = config

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks that are asked, in the order of the configuration."""
        return self.config.tasks

    @property
    def dials(self) -> Mapping[str, Sequence[int]]:
        """Tasks whose difficulty reaches beyond the usual -> levels, easy first."""
        return {name: TASKS[name].dial for name in self.tasks if TASKS[name].dial}

    def questions(self, task: str, difficulty: int | None = None) -> Sequence[Conversation]:
        """The questions of a task, each with the right answer in its only turn.

        Args:
            difficulty: level of every question; None draws the task's usual levels.

        Raises:
            UnknownNameError: this benchmark does not ask the task.
            ValueError: the task cannot be drawn at that level.
        """
        if task not in self.tasks:
            raise UnknownNameError("task of this glance benchmark", task, self.tasks)
        split, seed = self.config.split, self.config.seed
        return DrawnQuestions(
            lambda n: draw(task, split, seed, n, difficulty=difficulty, turns=1), self.config.questions
        )

    def is_correct(self, question: Conversation, answer: str) -> bool:
        """Whether an answer is the right one, apart from case, spacing and a full stop at its end."""
        return _plain(answer) == _plain(question.turns[-1].answer)


def _plain(answer: str) -> str:
    return " ".join(answer.casefold().removesuffix(".").split())
