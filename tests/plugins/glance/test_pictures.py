"""The answers against the pixels: a reader that knows only colours and masks must come to the same answers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from linearize_glance.canvas import COLORS, TILE, Picture
from linearize_glance.drawing import draw_arrays
from linearize_glance.sprites import GLYPHS, SHAPE_SIZES, SHAPES, glyph_mask, shape_mask
from numpy.typing import NDArray

NAMES = tuple(COLORS)
# Shades differ by up to 10 per channel from the colour of their name: 18 in all, and smooth edges are left out.
NEAR = 18


def pixels_of(picture: Picture, color: str) -> NDArray[np.bool_]:
    """Where the picture has a colour, bool [height, width]."""
    distance = np.linalg.norm(picture.astype(float) - np.asarray(COLORS[color], dtype=float), axis=2)
    return distance <= NEAR


def blobs(mask: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Connected pixels: middle row, middle column and number of each group of more than 20."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        group, front = [], [left.pop()]
        while front:
            y, x = front.pop()
            group.append((y, x))
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if near in left:
                    left.remove(near)
                    front.append(near)
        if len(group) > 20:
            rows, columns = zip(*group, strict=True)
            middle_y, middle_x = (max(rows) + min(rows)) / 2, (max(columns) + min(columns)) / 2
            found.append((middle_y, middle_x, len(group)))
    return found


def only(picture: Picture, color: str) -> tuple[float, float, int]:
    """The one object of a colour."""
    (blob,) = blobs(pixels_of(picture, color))
    return blob


def test_named_colors_are_far_enough_apart_to_be_told() -> None:
    for number, first in enumerate(NAMES):
        for second in NAMES[number + 1 :]:
            distance = np.linalg.norm(np.subtract(COLORS[first], COLORS[second]))
            assert distance > 2 * NEAR, (first, second)


@pytest.mark.parametrize("index", range(15))
def test_counts_are_those_of_the_picture(index: int) -> None:
    drawing = draw_arrays("count", "evaluation", 1, index, turns=4)
    counts = {color: len(blobs(pixels_of(drawing.pictures[0], color))) for color in NAMES}
    for turn in drawing.turns:
        words = turn.question.split("\n")[-1].split()
        assert turn.answer == str(counts[words[2]] if words[2] in counts else sum(counts.values()))


def test_sides_are_those_of_the_picture() -> None:
    answers = set()
    drawings = [draw_arrays("spatial", "evaluation", 1, index, turns=12) for index in range(15)]
    asked = [(drawing.pictures[0], turn) for drawing in drawings for turn in drawing.turns if " one " in turn.question]
    for picture, turn in asked:
        colors = re.findall(r"the (\w+) one", turn.question)
        (y, x, _), (other_y, other_x, _) = (only(picture, color) for color in colors)
        sides = ("left" if x < other_x else "right") if "left" in turn.question else "above" if y < other_y else "below"
        assert turn.answer == sides
        answers.add(sides)
    assert answers == {"left", "right", "above", "below"}


@pytest.mark.parametrize("index", range(15))
def test_bars_are_as_high_as_the_answers_say(index: int) -> None:
    drawing = draw_arrays("chart", "evaluation", 1, index, turns=4)
    assert len(drawing.turns) in (3, 4)
    for turn in drawing.turns:
        color = turn.question.split("\n")[-1].split()[4]
        rows = pixels_of(drawing.pictures[0], color).any(axis=1).sum()
        assert turn.answer == str(round(rows / 12))


@pytest.mark.parametrize("index", range(15))
def test_an_album_shows_its_colors_where_the_answers_say(index: int) -> None:
    drawing = draw_arrays("album", "evaluation", 1, index, turns=16)
    assert len(drawing.turns) == 4 * len(drawing.pictures)
    shown = [next(color for color in NAMES if blobs(pixels_of(picture, color))) for picture in drawing.pictures]
    for turn in drawing.turns:
        words = turn.question.split("\n")[-1].split()
        if words[:2] == ["what", "colour"]:
            assert turn.answer == shown[int(words[4]) - 1]
        elif words[3] in NAMES:
            assert shown[int(turn.answer) - 1] == words[3]


@pytest.mark.parametrize("index", range(15))
def test_attributes_pair_each_color_with_the_shape_in_the_picture(index: int) -> None:
    drawing = draw_arrays("attribute", "evaluation", 1, index, turns=6)
    for turn in drawing.turns:
        words = turn.question.split("\n")[-1].split()
        color, shape = (turn.answer, words[4]) if words[1] == "colour" else (words[4], turn.answer)
        _, _, area = only(drawing.pictures[0], color)
        # A shape's solid pixels number the same wherever it lies, so its area says which shapes it can be.
        sizes = range(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1)
        solid = [int((shape_mask(shape, size).cover > 250).sum()) for size in sizes]
        assert min(solid) * 0.85 <= area <= max(solid) * 1.15


def test_a_line_of_text_is_read_by_matching_its_characters_one_by_one() -> None:
    for index in range(10):
        drawing = draw_arrays("ocr", "evaluation", 1, index, difficulty=4, turns=1)
        dark = drawing.pictures[0].astype(int).min(axis=2) < 120
        read = [nearest_glyph(dark[:, column : column + 28]) for column in range(0, TILE, 28)]
        assert " ".join(read) == drawing.turns[0].answer


def nearest_glyph(dark: NDArray[np.bool_]) -> str:
    """The character whose outline fits the dark pixels of one cell column best, over all sizes."""
    rows, columns = np.nonzero(dark)
    cut = dark[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    misfits = {}
    for size in range(22, 28):
        for glyph in GLYPHS:
            rows, columns = np.nonzero(glyph_mask(glyph, size).cover[:, :, 0] > 140)
            shape = np.zeros((30, 30), dtype=bool)
            shape[rows - rows.min(), columns - columns.min()] = True
            padded = np.zeros((30, 30), dtype=bool)
            padded[: cut.shape[0], : cut.shape[1]] = cut
            misfits[glyph, size] = int((shape != padded).sum())
    return min(misfits, key=lambda pair: misfits[pair])[0]


def test_no_two_characters_or_shapes_look_alike() -> None:
    # Misfit is over the smaller of two areas: at least an eighth of the ink must differ.
    for size in (23, 26):
        assert smallest_misfit([glyph_mask(glyph, size).cover[:, :, 0] for glyph in GLYPHS]) > 1 / 8
    assert smallest_misfit([shape_mask(shape, 20).cover[:, :, 0] for shape in SHAPES]) > 1 / 8


def smallest_misfit(covers: list[NDArray[np.uint16]]) -> float:
    padded = []
    for cover in covers:
        canvas = np.zeros((30, 30))
        top, left = (30 - cover.shape[0]) // 2, (30 - cover.shape[1]) // 2
        canvas[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
        padded.append(canvas)
    return min(
        float(np.abs(first - second).sum() / min(first.sum(), second.sum()))
        for number, first in enumerate(padded)
        for second in padded[:number]
    )


def test_everything_a_character_or_shape_covers_lies_in_its_cell() -> None:
    for size in (23, 26):
        assert all(max(glyph_mask(glyph, size).cover.shape) <= 28 for glyph in GLYPHS)
    assert all(max(shape_mask(shape, SHAPE_SIZES[1]).cover.shape) <= 28 for shape in SHAPES)
