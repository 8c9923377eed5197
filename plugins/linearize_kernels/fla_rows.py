"""Calling flash-linear-attention's recurrences the way they want to be called.

Their packed documents lie in one row of a batch of one, with a state for each document; ours are rows with segments and
one state a row. Needs no fla. Letters as in :mod:`linearize.ops.gated`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def left_to_the_reference(q_BTNK: Tensor) -> bool:
    """Whether there is no token, or one that may need gradients, which the kernels for a single token do not have."""
    length = q_BTNK.shape[1]
    return length == 0 or (length == 1 and torch.is_grad_enabled())


def call_kernel(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    tensors: Mapping[str, Tensor],
    *,
    scale: float,
    state_BNKV: Tensor | None,
    segments_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The outputs [B, T, N, V] and the states [B, N, K, V] of a kernel of ``fla.ops``.

    Args:
        tensors: the kernel's arguments by name, all [B, T, N, ...].
        scale: always given to the kernel, whose own default is 1/sqrt(K).
        state_BNKV: cast to fp32, as the kernels require.
    """
    state = None if state_BNKV is None else state_BNKV.float()
    if segments_BT is None:
        return kernel(**tensors, scale=scale, initial_state=state, output_final_state=True)
    rows = Rows(segments_BT)
    flat = {name: tensor.flatten(0, 1).unsqueeze(0) for name, tensor in tensors.items()}
    y, states = kernel(
        **flat, scale=scale, initial_state=rows.spread(state), output_final_state=True, cu_seqlens=rows.starts
    )
    return y.view(*segments_BT.shape, *y.shape[2:]), states[rows.last]


class Rows:
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
