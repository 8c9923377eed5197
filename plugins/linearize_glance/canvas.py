"""Backgrounds and compositing: pictures as uint8 arrays [height, width, 3] on a grid of 28-pixel cells.

A visual token of the embedded teacher sees one 28x28 cell of a 112x112 tile (2x2 patches of 14 pixels), so what is
drawn keeps to the cells, with a little jitter inside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from linearize_glance.streams import between

CELL = 28
"""Pixels per side of one cell."""
GRID = 4
"""Cells per side of one tile."""
TILE = CELL * GRID
"""Pixels per side of one tile."""

Picture = NDArray[np.uint8]
Color = NDArray[np.uint16]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 55),
    "blue": (35, 75, 220),
    "yellow": (238, 205, 25),
    "orange": (245, 125, 15),
    "purple": (135, 45, 165),
    "cyan": (30, 190, 215),
    "black": (22, 22, 24),
}
COLOR_NAMES = tuple(COLORS)

_MARGIN = 48
_GRAIN = 7
"""Width of the background noise in grey levels."""


@dataclass(frozen=True, slots=True)
class Mask:
    """How much of each pixel is covered, and how much is not: uint16 [height, width, 1], 0..255, adding up to 255."""

    cover: NDArray[np.uint16]
    rest: NDArray[np.uint16]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.cover.shape[0]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.cover.shape[1]


def mask_from(cover: NDArray[np.uint8]) -> Mask:
    """A mask from coverage [height, width]."""
    wide = cover.astype(np.uint16)[:, :, None]
    return Mask(wide, 255 - wide)


@cache
def _grain() -> Picture:
    """Fixed noise to cut backgrounds from: drawing fresh noise would cost more than everything else in a picture."""
    size = (TILE + _MARGIN, 2 * TILE + _MARGIN, 3)
    return np.random.Generator(np.random.PCG64(28)).integers(0, _GRAIN, size, dtype=np.uint8)


def background(rng: np.random.Generator, columns: int = GRID) -> Picture:
    """A light, slightly grainy background of 4 rows of cells by ``columns`` (4 or 8); its brightness varies."""
    y, x, level = (int(number) for number in rng.integers((0, 0, 222), (_MARGIN, _MARGIN, 246)).tolist())
    picture: Picture = _grain()[y : y + TILE, x : x + columns * CELL] + np.uint8(level)
    return picture


def ink(rng: np.random.Generator, name: str) -> Color:
    """A shade of a named colour, near enough to it that no two names overlap."""
    shade: Color = np.clip(np.asarray(COLORS[name]) + rng.integers(-10, 11, 3), 0, 255).astype(np.uint16)
    return shade


def paste(picture: Picture, mask: Mask, color: Color, x: int, y: int) -> None:
    """Draws ``mask`` in one colour with its top left corner at (x, y), in place."""
    patch = picture[y : y + mask.height, x : x + mask.width]
    # 255 * 255 + 127 still fits uint16, since cover and rest add up to 255.
    patch[:] = (patch * mask.rest + color * mask.cover + 127) // 255


def paste_in_cell(
    rng: np.random.Generator, picture: Picture, mask: Mask, color: Color, row: int, column: int, jitter: int
) -> None:
    """Draws ``mask`` in the middle of a cell, moved by at most ``jitter`` pixels each way and never out of the cell."""
    free_x, free_y = CELL - mask.width, CELL - mask.height
    x = min(max(free_x // 2 + between(rng, -jitter, jitter), 0), free_x)
    y = min(max(free_y // 2 + between(rng, -jitter, jitter), 0), free_y)
    paste(picture, mask, color, column * CELL + x, row * CELL + y)
