"""Angles that grow with the tokens, and the turning of queries and keys by them.

A rotation of the state between two tokens is a rotation of queries and keys by the sum of all angles so far: only
differences of such sums are ever read. So a sum may drop full turns, and need not start anew with a document, whose
state starts anew.
Letters: B batch, T tokens, N query heads, K key width, P pairs of channels that turn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.mixing.rotary import RopeStyle

FULL_TURN = 2 * math.pi
# Tokens whose angles are summed in one piece: few enough that fp32 keeps the fifth digit of a radian.
CHUNK = 64


def sum_angles(turns_BTNP: Tensor, start_BNP: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each token all angles up to its own, up to full turns: [B, T, N, P], and [B, N, P] in fp64 after the last.

    Sums over chunks are fp64 and drop full turns, so that the hundred-thousandth token is as exact as the first; and so
    is the sum handed on, as calls of one token would else lose every angle below the rounding of the sum.

    Args:
        start_BNP: the sum before the first token; None: zero.
    """
    length = turns_BTNP.shape[1]
    per_chunk = min(CHUNK, length)
    padded = F.pad(turns_BTNP, (0, 0, 0, 0, 0, -length % per_chunk)).unflatten(1, (-1, per_chunk))
    totals = padded.sum(2, dtype=torch.float64)
    after = totals.cumsum(1)
    if start_BNP is not None:
        after = after + start_BNP.unsqueeze(1)
    before = (after - totals).remainder(FULL_TURN).to(padded.dtype)
    sums = (padded.cumsum(2) + before.unsqueeze(2)).flatten(1, 2)[:, :length]
    return sums, after[:, -1].remainder(FULL_TURN)


def turn(x_BTNK: Tensor, angles_BTNP: Tensor, style: RopeStyle = "half") -> Tensor:
    """x with the first P pairs of channels of each head turned, the others as they are; in x's dtype.

    Pairs are i and i + K/2 ("half") or 2i and 2i + 1 ("interleaved"), those of a teacher's rotary embedding that turns
    whole heads, so that both rotations are one. A partial one of halves pairs other channels, and the two act one after
    the other.
    """
    half, pairs = x_BTNK.shape[-1] // 2, angles_BTNP.shape[-1]
    cos, sin = angles_BTNP.cos(), angles_BTNP.sin()
    x = x_BTNK.to(angles_BTNP.dtype)
    if style == "interleaved":
        first, second = x[..., : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
        return torch.cat([turned, x[..., 2 * pairs :]], -1).to(x_BTNK.dtype)
    first, second = x[..., :pairs], x[..., half : half + pairs]
    parts = [
        first * cos - second * sin, x[..., pairs:half], second * cos + first * sin, x[..., half + pairs :],
    ]  # fmt: skip
    return torch.cat(parts, -1).to(x_BTNK.dtype)
