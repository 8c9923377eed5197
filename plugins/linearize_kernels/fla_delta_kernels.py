"""The delta rule by flash-linear-attention's Triton kernels for DeltaNet, Gated DeltaNet and Kimi Delta Attention.

Imported only where :mod:`linearize_kernels.usable` found fla so. Letters as in :mod:`linearize.ops.delta`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.kda import chunk_kda, fused_recurrent_kda
from torch import Tensor

from linearize.ops import delta as reference
from linearize.ops.gated import repeat_heads
from linearize_kernels.fla_rows import call_kernel, left_to_the_reference

# fla 0.6.0: ops/kda/chunk.py and ops/common/chunk_delta_h.py refuse wider keys.
WIDEST_KEY = 256


def delta_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    beta_BTN: Tensor,
    g: Tensor | None = None,
    *,
    scale: float = 1.0,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = reference.DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """See :func:`linearize.ops.delta.delta_recurrence`; the kernels' own chunk size is used.

    Single tokens that need gradients go to the reference (the kernels for one token have none), and so do keys of more
    than 256 channels.
    """
    heads, dtype = q_BTNK.shape[2], q_BTNK.dtype
    is_single = q_BTNK.shape[1] == 1
    if left_to_the_reference(q_BTNK) or q_BTNK.shape[3] > WIDEST_KEY:
        return reference.delta_recurrence(
            q_BTNK, k_BTMK, v_BTMV, beta_BTN, g,
            scale=scale, state_BNKV=state_BNKV, segments_BT=segments_BT, chunk_size=chunk_size,
        )  # fmt: skip
    tensors = {
        "q": q_BTNK,
        "k": repeat_heads(k_BTMK, heads, 2).to(dtype),
        "v": repeat_heads(v_BTMV, heads, 2).to(dtype),
        "beta": beta_BTN.float(),
    }
    if g is None and dtype == torch.float32 and not is_single:
        # fla 0.6.0: ops/delta_rule/chunk.py refuses fp32, its kernels with decay do not.
        g = torch.zeros_like(tensors["beta"])
    if g is not None:
        tensors["g"] = g.float()
    # The only token of a row goes on from the state before it, whatever its segment.
    return call_kernel(
        _kernel(g, is_single), tensors, scale=scale, state_BNKV=state_BNKV,
        segments_BT=None if is_single else segments_BT,
    )  # fmt: skip


def _kernel(g: Tensor | None, is_single: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """The kernel for a decay of g's shape."""
    if g is None:
        chunked, step = chunk_delta_rule, fused_recurrent_delta_rule
    elif g.dim() == 3:
        chunked, step = chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    else:
        chunked, step = chunk_kda, fused_recurrent_kda
    kernel: Callable[..., tuple[Tensor, Tensor]] = step if is_single else chunked
    return kernel
