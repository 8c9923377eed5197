"""A call of a mixer without a token, which no recurrence has to think of.

Letters: B batch, N query heads, V value width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linearize.protocols import AttentionSite, State


def without_tokens(mixer: Any, site: AttentionSite, x_B0D: Tensor, state: State | None) -> tuple[Tensor, State]:
    """The output [B, 0, N, V] of ``mixer`` at ``site``, and the state as it was, or an empty one."""
    batch_size = x_B0D.shape[0]
    if state is None:
        state = mixer.empty_state(batch_size, device=x_B0D.device, dtype=x_B0D.dtype)
    return x_B0D.new_zeros(batch_size, 0, site.num_heads, site.value_dim), state
