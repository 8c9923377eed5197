"""The channel-gated recurrence by flash-linear-attention's Triton kernels for gated linear attention.

Imported only where :mod:`linearize_kernels.usable` found fla so. Letters as in :mod:`linearize.ops.channel_gated`.
"""

from __future__ import annotations

from fla.ops.gla import chunk_gla, fused_recurrent_gla
from torch import Tensor

from linearize.ops import channel_gated as reference
from linearize.ops.gated import repeat_heads
from linearize_kernels.fla_rows import call_kernel, left_to_the_reference


def channel_gated_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    g_BTNK: Tensor,
    *,
    write_BTN: Tensor | None = None,
    scale: float = 1.0,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = reference.DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """See :func:`linearize.ops.channel_gated.channel_gated_recurrence`; the kernel's own chunk size is used.

    Single tokens that need gradients go to the reference.
    """
    heads, dtype = q_BTNK.shape[2], q_BTNK.dtype
    is_single = q_BTNK.shape[1] == 1
    if left_to_the_reference(q_BTNK):
        return reference.channel_gated_recurrence(
            q_BTNK, k_BTMK, v_BTMV, g_BTNK, write_BTN=write_BTN, scale=scale, state_BNKV=state_BNKV
        )
    k_BTNK, v_BTNV = repeat_heads(k_BTMK, heads, 2), repeat_heads(v_BTMV, heads, 2)
    if write_BTN is not None:
        v_BTNV = v_BTNV * write_BTN.unsqueeze(-1)
    tensors = {"q": q_BTNK, "k": k_BTNK.to(dtype), "v": v_BTNV.to(dtype)}
    if is_single:
        # The only token of a row goes on from the state before it, whatever its segment.
        return call_kernel(fused_recurrent_gla, {**tensors, "gk": g_BTNK.float()}, scale=scale, state_BNKV=state_BNKV)
    return call_kernel(
        chunk_gla, {**tensors, "g": g_BTNK.float()}, scale=scale, state_BNKV=state_BNKV, segments_BT=segments_BT
    )
