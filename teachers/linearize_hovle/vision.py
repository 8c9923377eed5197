"""From pixels to rows of the embedding module: patches, positions, pixel shuffle, projection.

Letters: I tiles, C channels, H and W pixels, P patches per tile, G image tokens per tile, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize_hovle.configuration import HovleEmbeddingConfig


class HovleVisionEmbedding(nn.Module):
    """A convolution per patch plus a learned position table, whose first row belongs to an unused class token."""

    def __init__(self, config: HovleEmbeddingConfig) -> None:
        super().__init__()
        self.grid = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.zeros(1, self.grid**2 + 1, config.hidden_size))

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Rows [I, P, D], patches in reading order."""
        patches_IDhw = self.patch_embedding(pixels_ICHW.to(self.patch_embedding.weight.dtype))
        height, width = patches_IDhw.shape[-2:]
        rows_IPD: Tensor = patches_IDhw.flatten(2).transpose(1, 2) + self.positions(height, width)
        return rows_IPD

    def positions(self, height: int, width: int) -> Tensor:
        """The table [1, P, D] for a grid of that size in patches; bicubic in float32 unless it is the table's own."""
        table = self.position_embedding[:, 1:]
        if (height, width) == (self.grid, self.grid):
            return table
        square = table.float().reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=(height, width), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2).to(table.dtype)


class PixelShuffleProjection(nn.Module):
    """Joins neighbouring patches into one token and projects it to the model width."""

    def __init__(self, config: HovleEmbeddingConfig) -> None:
        super().__init__()
        self.factor = config.shuffle_factor
        width = config.hidden_size
        self.input_projection = nn.Linear(width * self.factor**2, width)
        self.output_projection = nn.Linear(width, width)

    def forward(self, patches_IPD: Tensor) -> Tensor:
        """Tokens [I, G, D]; patches come in reading order of a square grid."""
        shuffled = pixel_shuffle(patches_IPD, self.factor)
        projected: Tensor = self.output_projection(F.gelu(self.input_projection(shuffled)))
        return projected


def pixel_shuffle(patches_IPD: Tensor, factor: int) -> Tensor:
    """Tokens [I, P / factor², factor² * D]: the patches of each block of factor x factor, row by row.

    Raises:
        ValueError: the patches form no square grid whose side is a multiple of ``factor``.
    """
    tiles, patches, width = patches_IPD.shape
    side = round(patches**0.5)
    if side * side != patches or side % factor:
        raise ValueError(
            f"pixel shuffle by {factor} needs a square grid with a side divisible by {factor}, found {patches} patches"
        )
    small = side // factor
    blocks = patches_IPD.reshape(tiles, small, factor, small, factor, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(tiles, small * small, factor * factor * width)
