"""What every data source yields: conversations about images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer. The question holds one ``<image>`` mark per image that it introduces, in order."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns about a few images, as people store them in LLaVA-style records.

    Attributes:
        turns: at least one; the answer of the last turn may be "" when only the prompt is wanted.
        images: PIL images in the order of the ``<image>`` marks over all turns.
        id: names the record in messages.
        task: which task of its source it belongs to; "" where the source has none.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    id: str = ""
    task: str = ""

    def num_image_marks(self) -> int:
        """How many ``<image>`` marks the questions hold; a right conversation has as many images."""
        return sum(turn.question.count(IMAGE_MARK) for turn in self.turns)
