"""The short causal depthwise convolution before a recurrence, in plain torch, with its state.

    z_t = bias + Σ_s weight[:, W-1-s] x_{t-s}, s = 0..W-1        y_t = activation(z_t)

Letters: B batch, T tokens, C channels, W taps. The state [B, C, W-1] holds the last W-1 inputs, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Literal["silu", "identity"]


def causal_conv(
    x_BTC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor | None = None,
    *,
    activation: Activation = "silu",
    state_BCX: Tensor | None = None,
    valid_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The convolved sequence [B, T, C] and the state [B, C, W-1] after the last token, both in x's dtype.

    Args:
        state_BCX: what an earlier call returned; None: zeros.
        valid_BT: bool; the input of a False token counts as zero. A left-padded row therefore equals the row alone.
        segments_BT: int; no tap reaches back over a change. The first token always goes on from ``state_BCX``.
    """
    width, dtype = weight_CW.shape[1], x_BTC.dtype
    x_BTC = zero_invalid(x_BTC, valid_BT)
    past_BXC = None if state_BCX is None else state_BCX.to(dtype).transpose(1, 2)
    count_BT = None if segments_BT is None else _segment_count(segments_BT)
    bias_C = weight_CW.new_zeros(weight_CW.shape[0]) if bias_C is None else bias_C
    # Taps first: each shift then reads a contiguous row of weights.
    weight_WC = weight_CW.to(dtype).t().contiguous()
    y_BTC = _ShiftedSum.apply(x_BTC, weight_WC, bias_C.to(dtype), past_BXC, count_BT, activation == "silu")
    return y_BTC, last_inputs(x_BTC, width, state_BCX, segments_BT)


def zero_invalid(x_BTC: Tensor, valid_BT: Tensor | None) -> Tensor:
    """x with the inputs of invalid tokens zeroed."""
    return x_BTC if valid_BT is None else x_BTC * valid_BT.unsqueeze(-1)


def last_inputs(x_BTC: Tensor, width: int, state_BCX: Tensor | None, segments_BT: Tensor | None = None) -> Tensor:
    """The state after x: the last W-1 inputs as [B, C, W-1], zero where they are of another segment than the last."""
    kept, length = width - 1, x_BTC.shape[1]
    if length == 0 and state_BCX is not None:
        return state_BCX
    state_BXC = x_BTC[:, max(length - kept, 0) :]
    if length < kept:
        if state_BCX is None:
            state_BCX = x_BTC.new_zeros(x_BTC.shape[0], x_BTC.shape[2], kept)
        state_BXC = torch.cat([state_BCX.to(x_BTC.dtype).transpose(1, 2), x_BTC], 1)[:, length:]
    if segments_BT is not None and length and kept:
        count = F.pad(_segment_count(segments_BT), (kept, 0))[:, -kept:]
        state_BXC = state_BXC * (count == count[:, -1:]).unsqueeze(-1)
    return state_BXC.transpose(1, 2)


class _ShiftedSum(torch.autograd.Function):
    """The convolution as multiply-adds of shifted views, and its gradient by hand.

    On a CPU, at two to four taps, this takes a fraction of the time of the grouped convolution or of the same sum under
    autograd, which pads and copies for every shift.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor | None, count: Tensor | None, silu: bool
    ) -> Tensor:
        z = torch.addcmul(bias, x, weight[-1])
        for shift in _shifts(x.shape[1], weight.shape[0], past is not None, count):
            source = (past if shift.from_past else x)[:, shift.then]  # type: ignore[index]
            z[:, shift.now].addcmul_(source if shift.mask is None else source * shift.mask, weight[shift.tap])
        ctx.save_for_backward(x, weight, past, count, z if silu else None)
        return F.silu(z) if silu else z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, past, count, z = ctx.saved_tensors
        dz = dy if z is None else torch.ops.aten.silu_backward(dy, z)
        needs_x, needs_weight, needs_bias, needs_past, *_ = ctx.needs_input_grad
        dx = dz * weight[-1] if needs_x else None
        dpast = torch.zeros_like(past) if needs_past else None
        dweight = torch.zeros_like(weight) if needs_weight else None
        if dweight is not None:
            dweight[-1] = (dz * x).sum((0, 1))
        for shift in _shifts(x.shape[1], weight.shape[0], past is not None, count):
            source, dsource = (past, dpast) if shift.from_past else (x, dx)
            dnow = dz[:, shift.now] if shift.mask is None else dz[:, shift.now] * shift.mask
            if dweight is not None:
                dweight[shift.tap] += (dnow * source[:, shift.then]).sum((0, 1))
            if dsource is not None:
                dsource[:, shift.then].addcmul_(dnow, weight[shift.tap])
        return dx, dweight, dz.sum((0, 1)) if needs_bias else None, dpast, None, None


@dataclass(frozen=True, slots=True)
class _Shift:
    """One tap over a run of tokens: outputs ``now`` read the inputs ``then``, of this call or of the carried state."""

    tap: int
    now: slice
    then: slice
    from_past: bool
    mask: Tensor | None


def _shifts(length: int, width: int, has_past: bool, count_BT: Tensor | None) -> Iterator[_Shift]:
    """Every tap that looks back. ``count_BT`` numbers the segments; the carried state belongs to number 0."""
    for back in range(1, width):
        tap = width - 1 - back
        if back < length:
            same = None if count_BT is None else count_BT[:, back:] == count_BT[:, :-back]
            yield _Shift(tap, slice(back, length), slice(0, length - back), False, _mask(same))
        if has_past:
            first = None if count_BT is None else count_BT[:, :back] == 0
            yield _Shift(tap, slice(0, min(back, length)), slice(tap, tap + min(back, length)), True, _mask(first))


def _mask(same_BT: Tensor | None) -> Tensor | None:
    return None if same_BT is None else same_BT.unsqueeze(-1)


def _segment_count(segments_BT: Tensor) -> Tensor:
    """How often the segment changed up to each token; 0 at the first."""
    return F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0)).cumsum(1)
