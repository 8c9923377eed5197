"""Batches of few widths: rows padded further than their longest needs.

Letters: B batch, T tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from linearize.protocols import TOKEN_PAD, Batch


def widened(batch: Batch, multiple: int) -> Batch:
    """The batch with pads on the right, up to the next multiple of so many tokens.

    Whatever the model gets for each token, [B, T, ...], has zeros there; ids repeat the row's last one, which is of no
    image, and no token sees it.
    """
    rows, tokens = batch.token_kind_BT.shape
    more = -tokens % multiple
    if not more:
        return batch
    inputs = {
        name: _padded(value, more) if value.dim() > 1 and tuple(value.shape[:2]) == (rows, tokens) else value
        for name, value in batch.inputs.items()
    }
    ids_BT = batch.inputs["input_ids"]
    inputs["input_ids"][:, tokens:] = ids_BT[:, -1:]
    kind_BT = F.pad(batch.token_kind_BT, (0, more), value=TOKEN_PAD)
    return Batch(inputs, F.pad(batch.loss_mask_BT, (0, more), value=False), kind_BT)


def _padded(value: Tensor, more: int) -> Tensor:
    """Zeros behind the second axis."""
    return F.pad(value, (*(0, 0) * (value.dim() - 2), 0, more))
