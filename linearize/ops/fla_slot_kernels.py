"""Gated slot attention by flash-linear-attention's Triton kernels.

Import only where :mod:`linearize.ops.backends` found fla usable. Letters as in :mod:`linearize.ops.slots`.
"""

from __future__ import annotations

import torch
from fla.ops.gsa import chunk_gsa, fused_recurrent_gsa
from torch import Tensor

from linearize.ops import slots as reference
from linearize.ops.fla_rows import Rows
from linearize.ops.slots import Slots


def slot_attention(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    write_BTMS: Tensor,
    g_BTMS: Tensor,
    *,
    scale: float = 1.0,
    state: Slots | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = reference.DEFAULT_CHUNK,
) -> tuple[Tensor, Slots]:
    """See :func:`linearize.ops.slots.slot_attention`; the kernel's own chunk size is used.

    Single tokens that need gradients go to the reference.
    """
    dtype = q_BTNK.dtype
    is_single = q_BTNK.shape[1] == 1
    if is_single and torch.is_grad_enabled():
        return reference.slot_attention(q_BTNK, k_BTMK, v_BTMV, write_BTMS, g_BTMS, scale=scale, state=state)
    tensors = {
        "q": q_BTNK, "k": k_BTMK.to(dtype), "v": v_BTMV.to(dtype), "s": write_BTMS.to(dtype), "g": g_BTMS.float(),
    }  # fmt: skip
    given = None if state is None else (state[0].float(), state[1].float())
    if is_single:
        # The only token of a row goes on from the state before it, whatever its segment.
        y, (keys, values) = fused_recurrent_gsa(**tensors, scale=scale, initial_state=given, output_final_state=True)
        return y, (keys, values)
    if segments_BT is None:
        y, (keys, values) = chunk_gsa(**tensors, scale=scale, initial_state=given, output_final_state=True)
        return y, (keys, values)
    rows = Rows(segments_BT)
    flat = {name: tensor.flatten(0, 1).unsqueeze(0) for name, tensor in tensors.items()}
    spread = None if given is None else (_spread(rows, given[0]), _spread(rows, given[1]))
    y, (keys, values) = chunk_gsa(
        **flat, scale=scale, initial_state=spread, output_final_state=True, cu_seqlens=rows.starts
    )
    return y.view(*segments_BT.shape, *y.shape[2:]), (keys[rows.last], values[rows.last])


def _spread(rows: Rows, state: Tensor) -> Tensor:
    spread = rows.spread(state)
    assert spread is not None
    return spread
