"""Tasks that read something off a picture: printed characters, handwritten digits, the bars of a chart."""

from __future__ import annotations

import numpy as np

from linearize.protocols.conversation import Turn
from linearize_glance import wording
from linearize_glance.canvas import CELL, COLOR_NAMES, GRID, TILE, background, ink, paste, paste_in_cell
from linearize_glance.sprites import (
    DIGIT_BOX,
    GLYPH_SIZES,
    GLYPHS,
    digit_mask,
    digit_pool,
    glyph_mask,
    handwritten,
)
from linearize_glance.streams import TRAINING_SPLITS, Split, between, pick
from linearize_glance.task import Scene, Task, about, shuffled

_DARK = ("black", "blue", "purple", "red", "green")
_JITTER = 2
_STEP = 12
"""Pixels per unit of a chart; nine units fit a tile."""
_FLOOR = TILE - 3
"""Where bars stand, in pixels from the top."""


def draw_ocr(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """A line of ``level`` characters; up to four in one tile, more in a picture that is two tiles wide."""
    columns = GRID if level <= GRID else 2 * GRID
    picture = background(rng, columns)
    text = [GLYPHS[number] for number in rng.integers(0, len(GLYPHS), level).tolist()]
    color = ink(rng, _DARK[between(rng, 0, len(_DARK) - 1)])
    size, row, first = between(rng, *GLYPH_SIZES), between(rng, 0, GRID - 1), between(rng, 0, columns - level)
    for offset, glyph in enumerate(text):
        paste_in_cell(rng, picture, glyph_mask(glyph, size), color, row, first + offset, _JITTER)
    return about([picture], [Turn(wording.READ_TEXT, " ".join(text))])


def draw_digits(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """One handwritten digit in any quarter of the tile, or two side by side; turned and faded a little in training."""
    picture = background(rng)
    pool, labels = digit_pool(split), handwritten()[1]
    color = ink(rng, "black")
    top = DIGIT_BOX * between(rng, 0, 1)
    lefts = (0, DIGIT_BOX) if level == 2 else (DIGIT_BOX * between(rng, 0, 1),)
    answer = []
    for left in lefts:
        number = pool[between(rng, 0, len(pool) - 1)]
        size, x, y, turn, fade = rng.random(5).tolist()
        is_training = split in TRAINING_SPLITS
        mask = digit_mask(
            number,
            size=50 + 6 * size,
            degrees=20 * turn - 10 if is_training else 0.0,
            x=4 * x - 2,
            y=4 * y - 2,
            strength=1 - 0.3 * fade if is_training else 1.0,
        )
        paste(picture, mask, color, left, top)
        answer.append(str(labels[number]))
    return about([picture], [Turn(wording.READ_DIGITS, " ".join(answer))])


def draw_chart(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """``level`` bars of different colours and of 1 to 9 units, before lines at every unit or at every third."""
    picture = background(rng)
    lines = picture[_FLOOR % _STEP - 1 : _FLOOR : _STEP * (3 if rng.random() < 0.5 else 1)]
    lines[:] = lines - np.uint8(45)
    picture[_FLOOR : _FLOOR + 1] = 60
    colors = [COLOR_NAMES[number] for number in pick(rng, len(COLOR_NAMES), level)]
    values = rng.integers(1, 10, level).tolist()
    first = between(rng, 0, GRID - level)
    for offset, (color, value) in enumerate(zip(colors, values, strict=True)):
        width = between(rng, 16, 22)
        left = (first + offset) * CELL + (CELL - width) // 2 + between(rng, -2, 2)
        picture[_FLOOR - _STEP * value : _FLOOR, left : left + width] = ink(rng, color)
    questions = [Turn(wording.value_of(color), str(value)) for color, value in zip(colors, values, strict=True)]
    return about([picture], shuffled(rng, questions))


OCR = Task(
    name="ocr", draw=draw_ocr, unit="characters", usual=(2, 4), full=(1, 8), skew=1.5, dial=(1, 2, 3, 4, 5, 6, 7, 8)
)
DIGITS = Task(name="digits", draw=draw_digits, unit="digits", usual=(1, 2), full=(1, 2))
CHART = Task(name="chart", draw=draw_chart, unit="bars", usual=(3, 4), full=(1, 4))
