"""Mamba-2's recurrence by mamba_ssm's Triton kernels.

Imported only where :mod:`linearize_kernels.usable` found mamba_ssm so. Its state is [B, N, V, K], ours [B, N, K, V].
Letters as in :mod:`linearize.ops.gated`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

from linearize.ops import gated as torch_gated

# mmMamba/src/model/linear_attention/mamba2.py trains with 128; the kernels want a power of two.
KERNEL_CHUNK = 128


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
    """See :func:`linearize.ops.gated.ssd_recurrence`; chunks are of 128 tokens."""
    heads, dtype = q_BTNK.shape[2], q_BTNK.dtype
    if q_BTNK.shape[1] <= 1:
        if torch.is_grad_enabled() or q_BTNK.shape[1] == 0:
            return torch_gated.ssd_recurrence(q_BTNK, k_BTMK, v_BTMV, dt_BTN, a_N, state_BNKV=state_BNKV)
        return _step(q_BTNK, k_BTMK, v_BTMV, dt_BTN, a_N, state_BNKV)
    segments = None
    if segments_BT is not None:
        # The kernels start from segment 0, so that the carried state reaches the first segment and no other.
        segments = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0)).cumsum(1).int()
    y_BTNV, state_BNVK = mamba_chunk_scan_combined(
        torch_gated.repeat_heads(v_BTMV, heads, 2).to(dtype),
        dt_BTN.float(),
        a_N.float(),
        torch_gated.repeat_heads(k_BTMK, heads, 2).to(dtype),
        q_BTNK,
        chunk_size=KERNEL_CHUNK,
        initial_states=None if state_BNKV is None else state_BNKV.float().transpose(-1, -2).contiguous(),
        seq_idx=segments,
        return_final_states=True,
    )
    return y_BTNV, state_BNVK.transpose(-1, -2)


def _step(
    q_B1NK: Tensor, k_B1MK: Tensor, v_B1MV: Tensor, dt_B1N: Tensor, a_N: Tensor, state_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token without gradients; the kernel updates its state in place, so it gets a copy."""
    batch, _, heads, key_dim = q_B1NK.shape
    value_dim = v_B1MV.shape[-1]
    if state_BNKV is None:
        state = torch.zeros(batch, heads, key_dim, value_dim, device=q_B1NK.device, dtype=torch.float32)
    else:
        state = state_BNKV.float().clone(memory_format=torch.contiguous_format)
    # Not left out: the launch of mamba_ssm 2.3.2 takes a missing dt_bias's stride and unpacks a missing D's strides as
    # *(D.stride(0), D.stride(1)) if D is not None else 0, which is *0 and a TypeError. Zeros change nothing.
    zeros = torch.zeros(heads, 1, device=q_B1NK.device, dtype=torch.float32).expand(-1, value_dim)
    y_BNV = selective_state_update(
        state.transpose(-1, -2),
        torch_gated.repeat_heads(v_B1MV[:, 0], heads, 1).to(q_B1NK.dtype),
        dt_B1N[:, 0].float().unsqueeze(-1).expand(-1, -1, value_dim),
        a_N.float().view(heads, 1, 1).expand(-1, value_dim, key_dim),
        torch_gated.repeat_heads(k_B1MK[:, 0], heads, 1).to(q_B1NK.dtype),
        q_B1NK[:, 0],
        D=zeros,
        dt_bias=zeros,
    )
    return y_BNV.unsqueeze(1), state
