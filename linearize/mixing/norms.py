"""Norms over single heads: of q and k before the recurrence, and of the output, with its gate, after it.

Letters: B batch, T tokens, N query heads, H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.ops.norm import gated_rms_norm


def unit_length(x_BTHK: Tensor, eps: float) -> Tensor:
    """Each head scaled to length 1; ``eps`` is added to the squared length, so that zeros stay zeros."""
    x = x_BTHK.to(torch.promote_types(x_BTHK.dtype, torch.float32))
    return (x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()).to(x_BTHK.dtype)


def norm_and_gate(y_BTNV: Tensor, norm: nn.RMSNorm | None, gate_BTNV: Tensor | None) -> Tensor:
    """RMSNorm(y) · SiLU(gate), without the factor that is None."""
    if norm is None:
        return y_BTNV if gate_BTNV is None else y_BTNV * F.silu(gate_BTNV)
    if gate_BTNV is None:
        return norm(y_BTNV)
    assert norm.eps is not None
    return gated_rms_norm(y_BTNV, norm.weight, gate_BTNV, norm.eps)
