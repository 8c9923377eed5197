"""Gated slot attention by flash-linear-attention's Triton kernels.

Imported only where :mod:`linearize_kernels.usable` found fla so. Letters as in :mod:`linearize.ops.slots`.
"""

from __future__ import annotations

from fla.ops.gsa import chunk_gsa, fused_recurrent_gsa
from torch import Tensor

from linearize.ops import slots as reference
from linearize_kernels.fla_rows import Rows, left_to_the_reference


def slot_attention(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    write_BTMS: Tensor,
    g_BTMS: Tensor,
    *,
    scale: float = 1.0,
    slot_keys_BMKS: Tensor | None = None,
    slot_values_BMSV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = reference.DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`linearize.ops.slots.slot_attention`; the kernel's own chunk size is used.

    Single tokens that need gradients go to the reference.
    """
    dtype = q_BTNK.dtype
    is_single = q_BTNK.shape[1] == 1
    if left_to_the_reference(q_BTNK):
        return reference.slot_attention(
            q_BTNK, k_BTMK, v_BTMV, write_BTMS, g_BTMS, scale=scale, slot_keys_BMKS=slot_keys_BMKS,
            slot_values_BMSV=slot_values_BMSV,
        )  # fmt: skip
    tensors = {
        "q": q_BTNK, "k": k_BTMK.to(dtype), "v": v_BTMV.to(dtype), "s": write_BTMS.to(dtype), "g": g_BTMS.float(),
    }  # fmt: skip
    slots = None
    if slot_keys_BMKS is not None and slot_values_BMSV is not None:
        slots = slot_keys_BMKS.float(), slot_values_BMSV.float()
    if segments_BT is None or is_single:
        # The only token of a row goes on from the slots before it, whatever its segment.
        kernel = fused_recurrent_gsa if is_single else chunk_gsa
        y, (keys, values) = kernel(**tensors, scale=scale, initial_state=slots, output_final_state=True)
        return y, keys, values
    rows = Rows(segments_BT)
    flat = {name: tensor.flatten(0, 1).unsqueeze(0) for name, tensor in tensors.items()}
    spread = None if slots is None else tuple(rows.spread(tensor) for tensor in slots)
    y, (keys, values) = chunk_gsa(
        **flat, scale=scale, initial_state=spread, output_final_state=True, cu_seqlens=rows.starts
    )
    return y.view(*segments_BT.shape, *y.shape[2:]), keys[rows.last], values[rows.last]
