"""Held-out questions and their scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linearize.errors import UnknownNameError
from linearize.protocols.conversation import Conversation
from linearize_glance.config import GlanceBenchmarkConfig
from linearize_glance.drawing import TASKS, draw


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
        return [draw(task, split, seed, n, difficulty=difficulty, turns=1) for n in range(self.config.questions)]

    def is_correct(self, question: Conversation, answer: str) -> bool:
        """Whether an answer is the right one, apart from case, spacing and a full stop at its end."""
        return _plain(answer) == _plain(question.turns[-1].answer)


def _plain(answer: str) -> str:
    return " ".join(answer.casefold().removesuffix(".").split())
