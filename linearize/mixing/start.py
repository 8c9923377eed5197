"""Where the recurrences of different heads start, when they take over from attention and no paper says how."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST_HORIZON, LONGEST_HORIZON = 16.0, 1024.0


def spread(low: float, high: float, heads: int) -> Tensor:
    """``heads`` numbers from ``low`` to ``high``, evenly on a log scale; the last is ``high``."""
    if heads == 1:
        return torch.tensor([high], dtype=torch.float64)
    steps = torch.arange(heads, dtype=torch.float64) / (heads - 1)
    return low * (high / low) ** steps


def spread_horizons(heads: int) -> Tensor:
    """For each head after how many tokens it has forgotten about two thirds: 16 .. 1024.

    Heads start with different memories, all longer than the neighbourhood that a convolution sees.
    """
    return spread(SHORTEST_HORIZON, LONGEST_HORIZON, heads)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """What decays and write strengths are computed in: bf16 cannot tell 0.998 from 1."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) with a gradient that compiles.

    F.softplus has the same numbers, but in a compiled graph its backward (torch 2.13, aten.softplus_backward) gives
    strides that tracing did not foresee where the gradient is transposed, and the next view of it fails.
    """
    return torch.logaddexp(x, torch.zeros_like(x))
