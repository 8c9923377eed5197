"""Tasks about coloured shapes: attribute, count and spatial."""

from __future__ import annotations

import numpy as np

from linearize.protocols.conversation import Turn
from linearize_glance import wording
from linearize_glance.canvas import COLOR_NAMES, GRID, Picture, background, ink, paste_in_cell
from linearize_glance.sprites import SHAPE_SIZES, SHAPES, shape_mask
from linearize_glance.streams import Split, between, pick
from linearize_glance.task import Scene, Task, about, shuffled

_JITTER = 2


def place(rng: np.random.Generator, picture: Picture, shape: str, color: str, row: int, column: int) -> None:
    """Draws an object of random size in a cell."""
    mask = shape_mask(shape, between(rng, *SHAPE_SIZES))
    paste_in_cell(rng, picture, mask, ink(rng, color), row, column, _JITTER)


def draw_attribute(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """``level`` objects of different shapes and colours; asks for the one behind the other."""
    picture = background(rng)
    shapes = [SHAPES[number] for number in pick(rng, len(SHAPES), level)]
    colors = [COLOR_NAMES[number] for number in pick(rng, len(COLOR_NAMES), level)]
    for shape, color, cell in zip(shapes, colors, pick(rng, GRID * GRID, level), strict=True):
        place(rng, picture, shape, color, *divmod(cell, GRID))
    questions = [Turn(wording.color_of(shape), color) for shape, color in zip(shapes, colors, strict=True)]
    questions += [Turn(wording.shape_of(color), shape) for shape, color in zip(shapes, colors, strict=True)]
    return about([picture], shuffled(rng, questions))


def draw_count(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """``level`` objects in at most three colours; asks for their number, or for those of one colour (it may be 0)."""
    picture = background(rng)
    palette = [COLOR_NAMES[number] for number in pick(rng, len(COLOR_NAMES), between(rng, 2, 3))]
    colors = [palette[number] for number in rng.integers(0, len(palette), level).tolist()]
    for color, cell in zip(colors, pick(rng, GRID * GRID, level), strict=True):
        place(rng, picture, SHAPES[between(rng, 0, len(SHAPES) - 1)], color, *divmod(cell, GRID))
    everything = Turn(wording.COUNT_ALL, str(level))
    by_color = [Turn(wording.count_of(color), str(colors.count(color))) for color in shuffled_names(rng, palette)]
    # Asked first as often as a colour is: half of the single questions are about all objects.
    position = 0 if rng.random() < 0.5 else between(rng, 1, len(by_color))
    return about([picture], [*by_color[:position], everything, *by_color[position:]])


def shuffled_names(rng: np.random.Generator, names: list[str]) -> list[str]:
    """The names in random order."""
    return [names[number] for number in pick(rng, len(names), len(names))]


def draw_spatial(rng: np.random.Generator, level: int, split: Split) -> Scene:
    """``level`` objects, no two in one row or column of cells; asks on which side of another one of them is."""
    picture = background(rng)
    shapes = [SHAPES[number] for number in pick(rng, len(SHAPES), level)]
    colors = [COLOR_NAMES[number] for number in pick(rng, len(COLOR_NAMES), level)]
    rows, columns = pick(rng, GRID, level), pick(rng, GRID, level)
    for shape, color, row, column in zip(shapes, colors, rows, columns, strict=True):
        place(rng, picture, shape, color, row, column)
    ones = [f"{color} one" for color in colors]
    questions = []
    for first in range(level):
        for second in range(level):
            if first != second:
                names = shapes if rng.random() < 0.5 else ones
                side = "left" if columns[first] < columns[second] else "right"
                height = "above" if rows[first] < rows[second] else "below"
                questions.append(Turn(wording.side_of(names[first], names[second]), side))
                questions.append(Turn(wording.height_of(names[first], names[second]), height))
    return about([picture], shuffled(rng, questions))


ATTRIBUTE = Task(name="attribute", draw=draw_attribute, unit="objects", usual=(1, 3), full=(1, 3))
COUNT = Task(name="count", draw=draw_count, unit="objects", usual=(1, 6), full=(1, 6))
SPATIAL = Task(name="spatial", draw=draw_spatial, unit="objects", usual=(3, 3), full=(2, 4))
