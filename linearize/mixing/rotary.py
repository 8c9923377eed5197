"""The teacher's rotary embedding in the linear route.

A turned q and a turned k still meet in a plain product, q_t·k_s with both turned depends on t - s alone, so a
recurrence over turned keys is as exact as over plain ones.
Letters: B batch (1 or that of x), T tokens, H heads, K head width, R width that is turned.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Position = tuple[Tensor, Tensor]
RopeStyle = Literal["half", "interleaved"]


def rotate(x_BTHK: Tensor, position: Position, style: RopeStyle = "half") -> Tensor:
    """x with the first R numbers of each head turned pair by pair; the others as they are.

    Args:
        position: cos and sin [B, T, R] as transformers passes them, R at most K (a partial rotary embedding).
        style: which numbers are a pair: "half": i and i + R/2, as in Llama; "interleaved": 2i and 2i + 1.

    Raises:
        ValueError: they are not real tensors of that shape; names the shapes.
    """
    cos_BTR, sin_BTR = _checked(position, x_BTHK)
    width = cos_BTR.shape[-1]
    turned, rest = x_BTHK[..., :width], x_BTHK[..., width:]
    if style == "half":
        first, second = turned.chunk(2, -1)
        turned = turned * cos_BTR.unsqueeze(2) + torch.cat([-second, first], -1) * sin_BTR.unsqueeze(2)
    else:
        cos_BTR, sin_BTR = _pair_by_pair(cos_BTR, sin_BTR)
        first, second = turned[..., 0::2], turned[..., 1::2]
        across = torch.stack([-second, first], -1).flatten(-2)
        turned = turned * cos_BTR.unsqueeze(2) + across * sin_BTR.unsqueeze(2)
    return turned if rest.shape[-1] == 0 else torch.cat([turned, rest], -1)


def _pair_by_pair(cos_BTR: Tensor, sin_BTR: Tensor) -> Position:
    """Both with each angle twice in a row; some models pass them so, some each angle again half a width further."""
    is_paired = (cos_BTR[..., 0::2] == cos_BTR[..., 1::2]).all() & (sin_BTR[..., 0::2] == sin_BTR[..., 1::2]).all()
    cos, sin = (
        torch.where(is_paired, part, part.chunk(2, -1)[0].repeat_interleave(2, -1)) for part in (cos_BTR, sin_BTR)
    )
    return cos, sin


def _checked(position: Position, x_BTHK: Tensor) -> Position:
    batch, length, _, key_dim = x_BTHK.shape
    if not (isinstance(position, tuple) and len(position) == 2):
        raise ValueError(
            f"a linear site got a {type(position).__name__} as its rotary embedding; expected cos and sin. "
            "Set rope = false for teachers that turn q and k in another way"
        )
    cos, sin = position
    due = cos.shape[0] in (1, batch) and cos.shape[1] == length and cos.shape[2] <= key_dim if cos.dim() == 3 else False
    if not due or cos.shape != sin.shape or cos.shape[2] % 2:
        raise ValueError(
            f"cos has shape {tuple(cos.shape)} and sin {tuple(sin.shape)}; with q or k {tuple(x_BTHK.shape)} both "
            f"must be ({batch} or 1, {length}, an even number up to {key_dim})"
        )
    return cos.to(x_BTHK.dtype), sin.to(x_BTHK.dtype)
