"""What a task is: a drawing of pictures and questions at a level of difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from linearize.protocols.conversation import IMAGE_MARK, Turn
from linearize_glance.canvas import Picture
from linearize_glance.streams import TRAINING_SPLITS, Split

MAX_TURNS = 4
"""Most turns that a conversation gets when their number is left to chance."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Pictures with every question that can be asked about them.

    Attributes:
        pictures: uint8 arrays [height, width, 3]; none for a task in text alone.
        opening: what stands before the first question: the image marks, or the text that is asked about.
        questions: different questions with their answers, in the order in which they are asked; at least one.
    """

    pictures: tuple[Picture, ...]
    opening: str
    questions: Sequence[Turn]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of question.

    Attributes:
        draw: (rng, level, split) -> Scene.
        unit: what the level counts.
        usual: lowest and highest level of validation and evaluation questions.
        full: lowest and highest level that can be drawn; training covers all of it.
        skew: 1 draws training levels evenly; more favours the easy ones.
        dial: levels worth a point each in a plot of accuracy against difficulty; none where difficulty hardly varies.
    """

    name: str
    draw: Callable[[np.random.Generator, int, Split], Scene]
    unit: str
    usual: tuple[int, int]
    full: tuple[int, int]
    skew: float = 1.0
    dial: tuple[int, ...] = ()

    def levels(self, split: Split) -> tuple[int, int]:
        """Lowest and highest level that a split draws when nobody asks for others."""
        return self.full if split in TRAINING_SPLITS else self.usual

    def sample_level(self, rng: np.random.Generator, split: Split, levels: tuple[int, int] | None = None) -> int:
        """A level within ``levels`` (default: those of the split); skewed to the easy ones in training only."""
        low, high = levels or self.levels(split)
        skew = self.skew if split in TRAINING_SPLITS else 1.0
        return low + int((high - low + 1) * float(rng.random()) ** skew)

    def check_level(self, level: int) -> None:
        """Raises ValueError if the task cannot be drawn at ``level``."""
        low, high = self.full
        if not low <= level <= high:
            raise ValueError(f"glance task '{self.name}' asked for with {level} {self.unit}; it draws {low} to {high}")


def about(pictures: Sequence[Picture], questions: Sequence[Turn]) -> Scene:
    """A scene of one picture or several whose marks stand one to a line, unnumbered."""
    return Scene(tuple(pictures), f"{IMAGE_MARK}\n" * len(pictures), questions)


def shuffled(rng: np.random.Generator, questions: Sequence[Turn]) -> list[Turn]:
    """The questions in random order."""
    return [questions[number] for number in rng.permutation(len(questions)).tolist()]
