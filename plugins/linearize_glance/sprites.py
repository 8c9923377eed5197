"""Masks of shapes, characters and handwritten digits: each is rendered once per size and kept."""

from __future__ import annotations

import hashlib
import math
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from linearize.errors import PluginError
from linearize_glance.canvas import Mask, mask_from
from linearize_glance.streams import Split

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SHAPE_SIZES = (20, 25)
"""Smallest and largest side of a shape in pixels."""

GLYPHS = tuple("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789")
"""The characters of the reading task; O and I are left out because they look like 0 and 1."""
GLYPH_SIZES = (23, 26)
"""Smallest and largest font size in pixels."""

DIGIT_BOX = 56
"""Pixels per side of the square that holds one handwritten digit."""

_OVERSAMPLING = 8
_HELD_OUT = {"evaluation": (0, 240), "validation": (240, 360)}
_NUM_HELD_OUT = 360


@cache
def shape_mask(shape: str, size: int) -> Mask:
    """A shape that fills a square of ``size`` pixels, with smooth edges."""
    side = size * _OVERSAMPLING
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    else:
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in _corners(shape)], fill=255)
    return mask_from(np.asarray(image.reduce(_OVERSAMPLING)))


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square, y downwards."""
    if shape == "square":
        return [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]
    if shape == "triangle":
        return [(0.5, 0.02), (1.0, 0.96), (0.0, 0.96)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)]
    if shape == "cross":
        a, b = 0.34, 0.66
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    if shape == "star":
        return [
            (0.5 + radius * math.sin(angle), 0.53 - radius * math.cos(angle))
            for angle, radius in ((math.pi * step / 5, 0.53 if step % 2 == 0 else 0.21) for step in range(10))
        ]
    raise ValueError(f"shape {shape!r} asked for; there are {', '.join(SHAPES)}")


@cache
def glyph_mask(glyph: str, size: int) -> Mask:
    """One character, cut to its outline, in Pillow's own font (Aileron) made bolder by half a pixel."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise PluginError("glance draws characters with FreeType, which this Pillow lacks: install Pillow's wheel")
    image = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(image).text((size // 2, size // 2), glyph, fill=255, font=font, stroke_width=0.5)
    return mask_from(np.asarray(image.crop(image.getbbox())))


@cache
def handwritten() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 1797 digits of digits.npz: ink [1797, 10, 10] in 0..255, one empty pixel around, and labels [1797].

    Source: https://archive.ics.uci.edu/dataset/80, test set; see digits.md beside it.
    """
    with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        images, labels = stored["images"], stored["labels"]
    ink = np.pad((images * (255 / 16)).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    return ink, labels.astype(np.int64)


@cache
def digit_pool(split: Split) -> tuple[int, ...]:
    """Which handwritten digits a split may show: 240 for evaluation, 120 others for validation, the rest for training.

    The order that the pools are cut from hangs on no random generator, so no library's version changes it.
    """
    order = sorted(range(len(handwritten()[1])), key=lambda number: hashlib.sha256(b"digit %d" % number).digest())
    first, last = _HELD_OUT.get(split, (_NUM_HELD_OUT, len(order)))
    return tuple(order[first:last])


def digit_mask(number: int, *, size: float, degrees: float, x: float, y: float, strength: float) -> Mask:
    """Handwritten digit ``number``, ``size`` pixels high, turned and moved about the middle of a 56-pixel box.

    Args:
        strength: factor on the ink, at most 1.
    """
    pixels, middle, step = handwritten()[0][number], DIGIT_BOX / 2, 8 / size
    cos, sin = step * math.cos(math.radians(degrees)), step * math.sin(math.radians(degrees))
    to_source = (cos, sin, 5 - cos * (middle + x) - sin * (middle + y),
                 -sin, cos, 5 + sin * (middle + x) - cos * (middle + y))  # fmt: skip
    image = Image.fromarray(pixels).transform(
        (DIGIT_BOX, DIGIT_BOX), Image.Transform.AFFINE, to_source, Image.Resampling.BICUBIC
    )
    return mask_from((np.asarray(image) * np.float32(strength)).astype(np.uint8))
