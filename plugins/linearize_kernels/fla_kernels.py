"""The gated recurrence and the short convolution by flash-linear-attention's Triton kernels.

Imported only where :mod:`linearize_kernels.usable` found fla so. Letters as in :mod:`linearize.ops.gated`.
"""

from __future__ import annotations

import torch.nn.functional as F
from fla.modules.causal_conv1d import causal_conv1d
from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
from torch import Tensor

from linearize.ops import conv as torch_conv
from linearize.ops import gated as torch_gated
from linearize.ops.conv import Activation
from linearize_kernels.fla_rows import call_kernel, left_to_the_reference


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
    if left_to_the_reference(q_BTNK):
        return torch_gated.gated_recurrence(
            q_BTNK, k_BTMK, v_BTMV, g_BTN, write_BTN=write_BTN, scale=scale, state_BNKV=state_BNKV
        )
    k_BTNK = torch_gated.repeat_heads(k_BTMK, heads, 2).to(dtype)
    v_BTNV = torch_gated.repeat_heads(v_BTMV, heads, 2)
    if write_BTN is not None:
        v_BTNV = v_BTNV * write_BTN.unsqueeze(-1)
    tensors = {"q": q_BTNK, "k": k_BTNK, "v": v_BTNV.to(dtype)}
    if single:
        # The only token of a row goes on from the state before it, whatever its segment.
        tensors["g"] = g_BTN.float()
        return call_kernel(fused_recurrent_simple_gla, tensors, scale=scale, state_BNKV=state_BNKV)
    key_dim, value_dim = q_BTNK.shape[-1], v_BTNV.shape[-1]
    if dtype.itemsize == 2 and (key_dim % 2 or value_dim % 2):
        # fla 0.6.0 refuses odd widths in 16 bits, for which Triton builds a backward that reads out of bounds.
        tensors = {name: F.pad(tensor, (0, tensor.shape[-1] % 2)) for name, tensor in tensors.items()}
        state_BNKV = None if state_BNKV is None else F.pad(state_BNKV, (0, value_dim % 2, 0, key_dim % 2))
    tensors["g"] = g_BTN.float()
    y, state = call_kernel(chunk_simple_gla, tensors, scale=scale, state_BNKV=state_BNKV, segments_BT=segments_BT)
    return y[..., :value_dim], state[:, :, :key_dim, :value_dim]


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
    if segments_BT is not None or x_BTC.shape[1] <= 1:
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
