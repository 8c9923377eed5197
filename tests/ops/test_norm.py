"""The gated norm against PyTorch's own operations in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from linearize.ops.norm import gated_rms_norm


def test_value_and_every_gradient_equal_the_composed_operations() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 3, 8), (8,), (2, 5, 3, 8))
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    y, weight, gate = leaves
    found = gated_rms_norm(y, weight, gate, 1e-5)
    wanted = F.rms_norm(y, (8,), weight, 1e-5) * F.silu(gate)
    toward = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, atol=1e-13, rtol=1e-13)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, toward), torch.autograd.grad(wanted, leaves, toward), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_a_zero_row_has_a_finite_gradient() -> None:
    y = torch.zeros(2, 4, requires_grad=True)
    gated_rms_norm(y, torch.ones(4), torch.ones(2, 4), 1e-5).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


def test_a_backward_pass_inside_autocast_is_fp32_too() -> None:
    y, gate = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    weight = torch.rand(8)
    (wanted,) = torch.autograd.grad(gated_rms_norm(y, weight, gate, 1e-5).square().sum(), y)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(gated_rms_norm(y, weight, gate, 1e-5).square().sum(), y)
    assert torch.equal(found, wanted)


def test_bf16_is_computed_in_fp32() -> None:
    y, gate, weight = torch.randn(3, 64).bfloat16(), torch.randn(3, 64).bfloat16(), torch.ones(64)
    found = gated_rms_norm(y, weight, gate, 1e-5)
    wanted = F.rms_norm(y.float(), (64,), None, 1e-5) * F.silu(gate.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0, rtol=2**-8)
