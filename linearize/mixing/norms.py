"""Norms over single heads: of q and k before the recurrence, and of the output, with its gate, after it.

Letters: B batch, T tokens, N query heads, H heads, K key width, V value width.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from linearize.ops.norm import gated_rms_norm


class PlainRmsNorm(Protocol):
    """What :func:`is_plain_rms_norm` has found to be there."""

    weight: Tensor
    eps: float


def unit_length(x_BTHK: Tensor, eps: float) -> Tensor:
    """Each head scaled to length 1; ``eps`` is added to the squared length, so that zeros stay zeros."""
    x = x_BTHK.to(torch.promote_types(x_BTHK.dtype, torch.float32))
    return (x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()).to(x_BTHK.dtype)


def norm_and_gate(y_BTNV: Tensor, norm: nn.Module | None, gate_BTNV: Tensor | None) -> Tensor:
    """norm(y) · SiLU(gate), without the factor that is None.

    A plain RMSNorm and its gate are one step; whatever wraps or replaces the norm is called.
    """
    if norm is not None and gate_BTNV is not None and is_plain_rms_norm(norm, y_BTNV.shape[-1]):
        return gated_rms_norm(y_BTNV, norm.weight, gate_BTNV, norm.eps)
    normed_BTNV = y_BTNV if norm is None else norm(y_BTNV)
    return normed_BTNV if gate_BTNV is None else normed_BTNV * F.silu(gate_BTNV)


def is_plain_rms_norm(norm: nn.Module, width: int) -> TypeGuard[PlainRmsNorm]:
    """Whether a call of ``norm`` is RMSNorm over the last ``width`` numbers with its own weight and eps, and no more.

    False for subclasses, parametrizations, hooks of any kind, a ``forward`` set on the instance (as offloading does),
    and weights that are no ordinary tensors (quantised, sharded).
    """
    hooks = (norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks, norm._backward_pre_hooks)
    return (
        type(norm) is nn.RMSNorm
        and type(norm.weight) in (nn.Parameter, Tensor)
        and norm.normalized_shape == (width,)
        and norm.eps is not None
        and "forward" not in vars(norm)
        and not any(hooks)
        and not _has_any_global_hook()
    )
