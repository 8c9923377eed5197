"""Drawing by number: a task, a split, a seed and an index name one conversation for good."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from linearize.errors import UnknownNameError
from linearize.protocols.conversation import Conversation, Turn
from linearize_glance.canvas import Picture
from linearize_glance.memory import ALBUM, RECALL
from linearize_glance.objects import ATTRIBUTE, COUNT, SPATIAL
from linearize_glance.reading import CHART, DIGITS, OCR
from linearize_glance.streams import Split, between, stream
from linearize_glance.task import MAX_TURNS, Task

TASKS: dict[str, Task] = {
    task.name: task for task in (ATTRIBUTE, COUNT, SPATIAL, OCR, CHART, DIGITS, RECALL, ALBUM)
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """A conversation whose pictures are still arrays: uint8 [112, 112 or 224, 3]."""

    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]


def task_named(name: str) -> Task:
    """The task of a name.

    Raises:
        UnknownNameError: there is no such task.
    """
    if name not in TASKS:
        raise UnknownNameError("glance task", name, TASKS)
    return TASKS[name]


def draw_arrays(
    task: str, split: Split, seed: int, index: int, *, difficulty: int | None = None, turns: int | None = None
) -> Drawing:
    """Pictures and turns without PIL, for those who feed a model by themselves; arguments as in ``draw``."""
    kind = task_named(task)
    if difficulty is not None:
        kind.check_level(difficulty)
    if turns is not None and turns < 1:
        raise ValueError(f"{turns} turns asked for; a conversation has at least 1")
    rng = stream(split, seed, task, index, difficulty)
    scene = kind.draw(rng, kind.sample_level(rng, split) if difficulty is None else difficulty, split)
    # Drawn last, so that the picture does not hang on the number of turns.
    asked = scene.questions[: between(rng, 1, MAX_TURNS) if turns is None else turns]
    first = Turn(scene.opening + asked[0].question, asked[0].answer)
    return Drawing((first, *asked[1:]), scene.pictures)


def draw(
    task: str, split: Split, seed: int, index: int, *, difficulty: int | None = None, turns: int | None = None
) -> Conversation:
    """One conversation; equal arguments give equal pictures and texts.

    Args:
        index: any whole number; there is no end of them.
        difficulty: the task's level (number of objects, characters, pairs, ...); None draws it as usual in the split.
        turns: how many questions about the same pictures, fewer where a picture does not allow so many different
            ones; None draws 1 to 4.

    Raises:
        UnknownNameError: there is no such task.
        ValueError: no such split, a difficulty that the task cannot draw, or fewer than one turn.
    """
    drawing = draw_arrays(task, split, seed, index, difficulty=difficulty, turns=turns)
    level = "" if difficulty is None else f"/{difficulty}"
    return Conversation(
        turns=drawing.turns,
        images=tuple(Image.fromarray(picture) for picture in drawing.pictures),
        id=f"glance/{split}/{seed}/{task}{level}/{index}",
        task=task,
    )
