"""Cuts an image into square tiles by its aspect ratio, with a thumbnail, and turns tiles into pixel values.

Same rules as the reference: grid by nearest aspect ratio, PIL's default filter for resizing, crops in reading order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from linearize.data.images import to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.lru_cache(maxsize=64)
def grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) with min_tiles <= columns * rows <= max_tiles, fewest tiles first."""
    every = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(every, key=lambda grid: grid[0] * grid[1]))


@functools.lru_cache(maxsize=4096)
def choose_grid(width: int, height: int, *, image_size: int, min_tiles: int = 1, max_tiles: int = 6) -> tuple[int, int]:
    """Columns and rows of the grid whose aspect ratio is nearest to the image's.

    On a tie the larger grid wins when the image has more than half the grid's pixels.
    """
    ratio = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in grids(min_tiles, max_tiles):
        distance = abs(ratio - columns / rows)
        is_tie_to_take = distance == best_distance and width * height > 0.5 * image_size**2 * columns * rows
        if distance < best_distance or is_tie_to_take:
            best, best_distance = (columns, rows), distance
    return best


def count_tiles(grid: tuple[int, int], *, use_thumbnail: bool) -> int:
    """Tiles of a grid, the thumbnail included."""
    tiles = grid[0] * grid[1]
    return tiles + 1 if use_thumbnail and tiles > 1 else tiles


def cut_tiles(
    image: Image.Image, *, image_size: int, min_tiles: int = 1, max_tiles: int = 6, use_thumbnail: bool = True
) -> npt.NDArray[np.uint8]:
    """Tiles [tiles, image_size, image_size, 3] in reading order, the thumbnail last."""
    image = to_rgb(image)
    columns, rows = choose_grid(*image.size, image_size=image_size, min_tiles=min_tiles, max_tiles=max_tiles)
    whole = np.asarray(_resized(image, (columns * image_size, rows * image_size)))
    grid = whole.reshape(rows, image_size, columns, image_size, 3).transpose(0, 2, 1, 3, 4)
    tiles = grid.reshape(-1, image_size, image_size, 3)
    if use_thumbnail and len(tiles) > 1:
        thumbnail = np.asarray(_resized(image, (image_size, image_size)))
        tiles = np.concatenate((tiles, thumbnail[None]))
    return tiles


def normalize(
    tiles: npt.NDArray[np.uint8], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> npt.NDArray[np.float32]:
    """Pixel values [tiles, 3, H, W]: (tile / 255 - mean) / std, channel by channel, in float32.

    Pixels have 256 values, so each channel is one table look-up.
    """
    tables = _tables(tuple(mean), tuple(std))
    values = np.empty((tiles.shape[0], 3, *tiles.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        np.take(tables[channel], tiles[..., channel], out=values[:, channel])
    return values


@functools.lru_cache(maxsize=16)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    grey = np.arange(256, dtype=np.float32) / np.float32(255)
    return (grey[None] - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size)
