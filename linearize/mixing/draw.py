"""Random starting values that depend on a generator alone, wherever the parameter lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def draw_uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform in ``low`` .. ``high`` with the shape and on the device of ``like``.

    Drawn on the generator's device, so that a seed gives the same numbers wherever the mixer lies.
    """
    drawn = torch.empty(like.shape, device=generator.device)
    return drawn.uniform_(low, high, generator=generator).to(like.device)


@torch.no_grad()
def fill_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's own range for a linear layer, weight and bias: ±1/sqrt(inputs)."""
    bound = linear.in_features**-0.5
    for parameter in linear.parameters():
        parameter.copy_(draw_uniform(parameter, -bound, bound, generator))


@torch.no_grad()
def fill_xavier(linear: nn.Linear, gain: float, generator: torch.Generator) -> None:
    """Xavier's uniform range times ``gain``, weight alone."""
    bound = gain * math.sqrt(6.0 / (linear.in_features + linear.out_features))
    linear.weight.copy_(draw_uniform(linear.weight, -bound, bound, generator))
