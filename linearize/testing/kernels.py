"""What a kernel has to keep: the values and gradients of the torch reference of its operation.

from linearize.testing import check_kernel

def test_swift_gated() -> None:
    check_kernel("gated", swift_gated, inputs, tolerance=1e-4)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from linearize.ops.backends import choose
from linearize.testing.numbers import assert_near


def check_kernel(
    operation: str, kernel: Callable[..., Any], inputs: Mapping[str, Tensor | None], tolerance: float, **options: Any
) -> None:
    """Fails unless every output, and every gradient of a fixed mixture of them, is that of the torch reference.

    Args:
        inputs: arguments of the operation by name; floating ones get gradients.
        tolerance: how far each may be off in the norm, relative to the reference's.
        options: further arguments, such as ``segments_BT`` or ``scale``.
    """
    __tracebackhide__ = True
    device = next(tensor.device for tensor in inputs.values() if tensor is not None)
    reference = choose(operation, "torch", device).kernel
    found, wanted = (_results(function, inputs, options) for function in (kernel, reference))
    for name, tensor in wanted.items():
        assert_near(found[name], tensor, tolerance, f"{name} of '{operation}', compared with the torch reference")


def _results(
    function: Callable[..., Any], inputs: Mapping[str, Tensor | None], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    leaves = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point())
        for name, tensor in inputs.items()
        if tensor is not None
    }
    outputs = function(**leaves, **options)
    generator = torch.Generator().manual_seed(0)
    toward = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    named = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(outputs, list(named.values()), toward, materialize_grads=True)
    results = {f"output {index}": y.detach() for index, y in enumerate(outputs)}
    return results | {f"the gradient of {name}": found for name, found in zip(named, gradients, strict=True)}
