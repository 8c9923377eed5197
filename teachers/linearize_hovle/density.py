"""The two token densities of a model whose pixel shuffle comes after the embedding module's layers ("post").

Its embedding module runs over one token per patch (dense), its language model over one token per shuffled block
(normal). An image token in the ids stands for R = factor² dense slots, so that a tile's run of image tokens covers its
patches in reading order; a text token stands for itself; pads are dropped, and rows of different dense length are
padded on the left.

Letters: B batch, T tokens at normal density, S slots at dense density, R slots per image token, D model width, X image
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DenseLayout:
    """Where each token of a batch lies in the dense sequence.

    Attributes:
        source_BS: int64, the normal-density token behind each slot; 0 at pads.
        part_BS: int64, which of the token's slots it is, from 0.
        valid_BS: bool, False at pads.
        image_BS: bool, slots that hold a patch.
        image_BT: bool, image tokens at normal density.
        text_BT: bool, normal-density tokens that are neither image nor pad.
    """

    source_BS: Tensor
    part_BS: Tensor
    valid_BS: Tensor
    image_BS: Tensor
    image_BT: Tensor
    text_BT: Tensor

    def to_dense(self, entries_BTRD: Tensor) -> Tensor:
        """Each slot's row, [B, S, D], out of R rows per token; pads repeat the first row."""
        parts = entries_BTRD.shape[2]
        index_BS = self.source_BS * parts + self.part_BS
        return entries_BTRD.flatten(1, 2).gather(1, index_BS[..., None].expand(-1, -1, entries_BTRD.shape[-1]))

    def to_normal(self, dense_BSD: Tensor, image_rows_XD: Tensor) -> Tensor:
        """Text rows from their slots, image rows from ``image_rows_XD`` in reading order, zeros at pads: [B, T, D]."""
        rows_BTD = dense_BSD.new_zeros(*self.text_BT.shape, dense_BSD.shape[-1])
        rows_BTD = rows_BTD.masked_scatter(self.text_BT[..., None], dense_BSD[self.valid_BS & ~self.image_BS])
        return rows_BTD.masked_scatter(self.image_BT[..., None], image_rows_XD.to(rows_BTD.dtype))


def dense_layout(image_BT: Tensor, valid_BT: Tensor, slots_per_image_token: int) -> DenseLayout:
    """Expands each valid image token into ``slots_per_image_token`` slots."""
    image_BT = image_BT & valid_BT
    repeats_BT = torch.where(image_BT, slots_per_image_token, 1) * valid_BT
    counts_B = repeats_BT.sum(dim=1)
    length = int(counts_B.max())
    tokens_T = torch.arange(image_BT.shape[1], device=image_BT.device)
    rows = [tokens_T.repeat_interleave(repeats_T) for repeats_T in repeats_BT]
    source_BS = torch.stack([torch.cat((row.new_zeros(length - len(row)), row)) for row in rows])
    slots_S = torch.arange(length, device=image_BT.device)
    valid_BS = slots_S >= (length - counts_B)[:, None]
    first_slot_BT = (length - counts_B)[:, None] + repeats_BT.cumsum(dim=1) - repeats_BT
    part_BS = (slots_S - first_slot_BT.gather(1, source_BS)) * valid_BS
    return DenseLayout(
        source_BS=source_BS,
        part_BS=part_BS,
        valid_BS=valid_BS,
        image_BS=image_BT.gather(1, source_BS) & valid_BS,
        image_BT=image_BT,
        text_BT=valid_BT & ~image_BT,
    )
