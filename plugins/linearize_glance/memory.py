"""Tasks that look something up in what came before: recall in text, album over several pictures."""

from __future__ import annotations

import numpy as np

from linearize.protocols.conversation import Turn
from linearize_glance import wording
from linearize_glance.canvas import COLOR_NAMES, GRID, background
from linearize_glance.objects import place
from linearize_glance.sprites import SHAPES
from linearize_glance.streams import Split, between, pick
from linearize_glance.task import Scene, Task, shuffled


def draw_recall(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """``level`` keys with a digit each, in text; asks for the digit of one key."""
    keys = [wording.KEYS[number] for number in pick(rng, len(wording.KEYS), level)]
    values = [str(number) for number in rng.integers(0, 10, level).tolist()]
    pairs = list(zip(keys, values, strict=True))
    questions = [Turn(wording.bound_to(key), value) for key, value in pairs]
    return Scene((), " ".join(f"{key} {value}" for key, value in pairs) + "\n", shuffled(rng, questions))


def draw_album(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """``level`` numbered pictures of one object each, no two alike in colour or shape; asks what is where."""
    shapes = [SHAPES[number] for number in pick(rng, len(SHAPES), level)]
    colors = [COLOR_NAMES[number] for number in pick(rng, len(COLOR_NAMES), level)]
    pictures, questions = [], []
    for number, (shape, color) in enumerate(zip(shapes, colors, strict=True), start=1):
        picture = background(rng)
        place(rng, picture, shape, color, between(rng, 0, GRID - 1), between(rng, 0, GRID - 1))
        pictures.append(picture)
        questions += [
            Turn(wording.color_in(number), color),
            Turn(wording.shape_in(number), shape),
            Turn(wording.image_with(color), str(number)),
            Turn(wording.image_with(shape), str(number)),
        ]
    return Scene(tuple(pictures), wording.numbered_marks(level), shuffled(rng, questions))


RECALL = Task(
    name="recall", draw=draw_recall, unit="pairs", usual=(4, 8), full=(2, 32), skew=2.0, dial=(2, 4, 8, 12, 16, 24, 32)
)
ALBUM = Task(name="album", draw=draw_album, unit="images", usual=(2, 4), full=(1, 6), skew=1.5, dial=(1, 2, 3, 4, 5, 6))
