"""The short convolution against PyTorch's grouped convolution in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops.conv import causal_conv


def draw(length: int, width: int, batch: int = 2, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length * 10 + width)
    shapes = ((batch, length, channels), (channels, width), (channels,), (batch, channels, width - 1))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def grouped(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    inputs = torch.cat([state, x.transpose(1, 2)], -1)
    y = F.conv1d(inputs, weight.unsqueeze(1), bias, groups=weight.shape[0]).transpose(1, 2)
    return F.silu(y) if activation == "silu" else y, inputs[..., inputs.shape[-1] - weight.shape[1] + 1 :]


@pytest.mark.parametrize("length", [1, 2, 3, 9, 65])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_values_and_every_gradient_equal_the_grouped_convolution(length: int, width: int, activation: str) -> None:
    x, weight, bias, state = leaves = draw(length, width)
    found = causal_conv(x, weight, bias, activation=activation, state_BCX=state)  # type: ignore[arg-type]
    wanted = grouped(x, weight, bias, state, activation)
    toward = [torch.randn(y.shape, dtype=torch.float64) for y in wanted]
    gradients = [torch.autograd.grad(ys, leaves, toward) for ys in (found, wanted)]
    for ours, theirs in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_without_state_and_bias_the_sequence_begins_after_zeros() -> None:
    x, weight, bias, state = draw(5, 3)
    found, _ = causal_conv(x, weight)
    torch.testing.assert_close(found, grouped(x, weight, 0 * bias, 0 * state, "silu")[0])


def assert_alike(found: Sequence[Tensor], wanted: Sequence[Tensor], leaves: list[Tensor]) -> None:
    """The same values, and the same gradient of one mixture of them for every leaf."""
    toward = [torch.randn(tensor.shape, dtype=torch.float64) for tensor in wanted]
    gradients = [torch.autograd.grad(tensors, leaves, toward, materialize_grads=True) for tensors in (found, wanted)]
    for ours, theirs in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_calls_that_hand_the_state_on_equal_one_in_value_and_every_gradient() -> None:
    x, weight, bias, state = leaves = draw(9, 4)
    parts, carried = [], state
    for span in (slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 9)):
        part, carried = causal_conv(x[:, span], weight, bias, state_BCX=carried)
        parts.append(part)
    assert_alike((torch.cat(parts, 1), carried), grouped(x, weight, bias, state, "silu"), leaves)


def test_a_left_padded_row_equals_the_row_alone_in_value_and_every_gradient() -> None:
    x, weight, bias, state = leaves = draw(7, 3)
    valid = torch.tensor([[False] * 4 + [True] * 3, [True] * 7])
    padded, after = causal_conv(x, weight, bias, valid_BT=valid)
    alone = grouped(x[:1, 4:], weight, bias, 0 * state[:1], "silu")
    assert_alike((padded[:1, 4:], after[:1]), alone, leaves)


@pytest.mark.parametrize("width", [2, 4])
def test_no_tap_reaches_into_another_segment(width: int) -> None:
    x, weight, bias, state = leaves = draw(8, width)
    segments = torch.tensor([[3, 3, 3, 4, 4, 4, 4, 9], [1, 1, 1, 1, 1, 1, 1, 1]])
    y, final = causal_conv(x, weight, bias, state_BCX=state, segments_BT=segments)
    spans = [(slice(0, 1), state[:1], (0, 3)), (slice(0, 1), None, (3, 7)), (slice(0, 1), None, (7, 8))]
    separate = [causal_conv(x[row, start:end], weight, bias, state_BCX=carried) for row, carried, (start, end) in spans]
    y_row, final_row = causal_conv(x[1:], weight, bias, state_BCX=state[1:])
    wanted = torch.cat([torch.cat([part for part, _ in separate], 1), y_row])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(final, torch.cat([separate[-1][1], final_row]))
    toward = torch.randn(y.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, toward), torch.autograd.grad(wanted, leaves, toward), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_bf16_stays_bf16_with_fp32_weights() -> None:
    x, weight, bias, _ = (tensor.detach().float() for tensor in draw(6, 2))
    y, state = causal_conv(x.bfloat16(), weight, bias)
    assert y.dtype == state.dtype == torch.bfloat16
    # Three roundings to 8 bits in a sum of two products.
    torch.testing.assert_close(y.float(), causal_conv(x, weight, bias)[0], atol=5e-2, rtol=2**-7)
