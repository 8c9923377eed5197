"""The gated recurrence and the short convolution by flash-linear-attention's Triton kernels.

Import only where :mod:`linearize.ops.backends` found fla usable. Letters as in :mod:`linearize.ops.gated`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fla.modules.causal_conv1d import causal_conv1d
from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
from torch import Tensor

from linearize.ops import conv as torch_conv
from linearize.ops import gated as torch_gated
from linearize.ops.conv import Activation


def gated_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    g_BTN: Tensor,
    *,
    write_BTN: Tensor | None = None,
    scale: float = 1.0,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = torch_gated.DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """See :func:`linearize.ops.gated.gated_recurrence`; the kernel's own chunk size is used."""
    heads, dtype = q_BTNK.shape[2], q_BTNK.dtype
    single = q_BTNK.shape[1] == 1
    if single and torch.is_grad_enabled():
        return torch_gated.gated_recurrence(
            q_BTNK, k_BTMK, v_BTMV, g_BTN, write_BTN=write_BTN, scale=scale, state_BNKV=state_BNKV
        )
    k_BTNK = torch_gated.repeat_heads(k_BTMK, heads, 2).to(dtype)
    v_BTNV = torch_gated.repeat_heads(v_BTMV, heads, 2)
    if write_BTN is not None:
        v_BTNV = v_BTNV * write_BTN.unsqueeze(-1)
    tensors = q_BTNK, k_BTNK, v_BTNV.to(dtype), g_BTN.float()
    state = None if state_BNKV is None else state_BNKV.float()
    if single:
        return fused_recurrent_simple_gla(*tensors, scale=scale, initial_state=state, output_final_state=True)
    if segments_BT is None:
        return chunk_simple_gla(*tensors, scale=scale, initial_state=state, output_final_state=True)
    rows = _Rows(segments_BT)
    y, states = chunk_simple_gla(
        *(tensor.flatten(0, 1).unsqueeze(0) for tensor in tensors),
        scale=scale, initial_state=rows.spread(state), output_final_state=True, cu_seqlens=rows.starts,
    )  # fmt: skip
    return y.view(*q_BTNK.shape[:3], -1), states[rows.last]


def ssd_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    dt_BTN: Tensor,
    a_N: Tensor,
    *,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = torch_gated.DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """See :func:`linearize.ops.gated.ssd_recurrence`."""
    return gated_recurrence(
        q_BTNK, k_BTMK, v_BTMV, dt_BTN * a_N, write_BTN=dt_BTN, state_BNKV=state_BNKV, segments_BT=segments_BT
    )


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
    """See :func:`linearize.ops.conv.causal_conv`.

    Packed documents and single tokens go to the torch reference: the first because this kernel wants them in one row,
    the second because a launch costs more than the arithmetic.
    """
    if segments_BT is not None or x_BTC.shape[1] == 1:
        return torch_conv.causal_conv(
            x_BTC,
            weight_CW,
            bias_C,
            activation=activation,
            state_BCX=state_BCX,
            valid_BT=valid_BT,
            segments_BT=segments_BT,
        )
    width = weight_CW.shape[1]
    x_BTC = torch_conv.zero_invalid(x_BTC, valid_BT)
    # fla keeps W inputs where W - 1 matter; the oldest is never read.
    state_BCW = None if state_BCX is None else F.pad(state_BCX.to(x_BTC.dtype), (1, 0)).contiguous()
    y_BTC, _ = causal_conv1d(
        x_BTC.contiguous(),
        weight_CW.to(x_BTC.dtype),
        None if bias_C is None else bias_C.to(x_BTC.dtype),
        initial_state=state_BCW,
        activation="silu" if activation == "silu" else None,
    )
    return y_BTC, torch_conv.last_inputs(x_BTC, width, state_BCX)


class _Rows:
    """Packed rows laid end to end as fla's variable-length kernels want them.

    Attributes:
        starts: [number of segments + 1], where each begins in the flattened batch, and its end.
        first, last: [B], each row's first and last segment.
    """

    def __init__(self, segments_BT: Tensor) -> None:
        begins = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)
        self.starts = F.pad(begins.flatten().nonzero().squeeze(1), (0, 1), value=begins.numel())
        self.last = begins.sum(1).cumsum(0) - 1
        self.first = F.pad(self.last[:-1] + 1, (1, 0))

    def spread(self, state_BNKV: Tensor | None) -> Tensor | None:
        """Each row's carried state at its first segment, zeros at the others."""
        if state_BNKV is None:
            return None
        states = state_BNKV.new_zeros(len(self.starts) - 1, *state_BNKV.shape[1:])
        return states.index_copy(0, self.first, state_BNKV)
