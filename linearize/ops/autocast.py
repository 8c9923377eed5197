"""Running a reference outside of autocast, backward too.

Layer stages run backward inside the teacher's forward, where autocast may be on, and autograd would then compute its
products of fp32 tensors in bf16. Turning autocast off around the forward does not reach that far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def outside_autocast(function: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """``function(*tensors)`` computed without autocast, forward and backward, wherever either is called.

    Args:
        tensors: all that ``function`` differentiates; the first is a tensor and decides the device.
    """
    if torch.compiler.is_compiling():
        # A compiled graph has one setting for its whole backward pass, that at its entry; no graph inside it helps.
        with _off(tensors[0]):
            return function(*tensors)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        outputs: tuple[Tensor, Tensor] = _OutsideAutocast.apply(function, *tensors)
        return outputs
    with _off(tensors[0]):
        return function(*tensors)


def _off(tensor: Tensor | None) -> torch.autocast:
    assert tensor is not None
    return torch.autocast(tensor.device.type, enabled=False)


class _OutsideAutocast(torch.autograd.Function):
    """A graph inside the graph, whose backward pass runs in one piece and so under one setting of autocast."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.leaves = [
            None if tensor is None else tensor.detach().requires_grad_(is_needed)
            for tensor, is_needed in zip(tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with _off(tensors[0]), torch.enable_grad():
            outputs = function(*ctx.leaves)
        # An output that no gradient reaches, as the state of a q alone, stands for itself.
        ctx.reached = [output.requires_grad for output in outputs]
        ctx.outputs = [output for output in outputs if output.requires_grad]
        return tuple(output.detach() for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *toward: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [leaf for leaf in ctx.leaves if leaf is not None and leaf.requires_grad]
        given = [gradient for gradient, is_reached in zip(toward, ctx.reached, strict=True) if is_reached]
        with _off(wanted[0]):
            # Kept as the outer graph may be, with retain_graph; it goes when the outer graph goes.
            found = iter(torch.autograd.grad(ctx.outputs, wanted, given, retain_graph=True, allow_unused=True))
        return None, *(next(found) if leaf is not None and leaf.requires_grad else None for leaf in ctx.leaves)
