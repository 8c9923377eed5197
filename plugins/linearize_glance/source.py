"""Conversations to train on, by number."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from linearize.protocols.conversation import Conversation
from linearize_glance.config import GlanceConfig
from linearize_glance.drawing import TASKS, Drawing, draw, draw_arrays
from linearize_glance.streams import between, stream


class GlanceSource:
    """A mix of tasks without end: the same index always gives the same conversation.

    Attributes:
        size: number of conversations; None when there is no end of them.
    """

    def __init__(self, config: GlanceConfig) -> None:
        self.config = config
        self.size = config.size
        self._names = tuple(config.tasks)
        total = sum(config.tasks.values())
        self._bounds = [weight / total for weight in accumulate(config.tasks.values())]

    def __getitem__(self, index: int) -> Conversation:
        """Conversation number ``index``.

        Raises:
            IndexError: the index is negative, or not below the size.
        """
        task, level, turns = self._choice(index)
        return draw(task, self.config.split, self.config.seed, index, difficulty=level, turns=turns)

    def arrays(self, index: int) -> tuple[str, Drawing]:
        """The task and content of conversation ``index`` with pictures as arrays, which spares making PIL images."""
        task, level, turns = self._choice(index)
        return task, draw_arrays(task, self.config.split, self.config.seed, index, difficulty=level, turns=turns)

    def _choice(self, index: int) -> tuple[str, int, int]:
        """Task, level and number of turns of a conversation."""
        if index < 0 or (self.size is not None and index >= self.size):
            end = "any number" if self.size is None else f"{self.size - 1}"
            raise IndexError(f"conversation {index} asked for; this source has 0 to {end}")
        rng = stream(self.config.split, self.config.seed, "mix", index)
        point = float(rng.random())
        # Rounding may leave the last bound just below 1, so the last name takes whatever lies beyond the others.
        name = self._names[min(bisect_right(self._bounds, point), len(self._names) - 1)]
        level = TASKS[name].sample_level(rng, self.config.split, self.config.difficulty.get(name))
        return name, level, between(rng, *self.config.turns)
