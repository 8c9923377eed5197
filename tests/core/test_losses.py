"""The losses against slow and obvious ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from linearize.distill.losses import SiteError, kl_backward, kl_sum

POSITIONS, WIDTH, VOCABULARY = 7, 5, 11


def direct_kl(teacher_PV: Tensor, student_PV: Tensor, temperature: float, reverse: bool) -> Tensor:
    """Position by position and token by token, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for teacher, student in zip(teacher_PV.double(), student_PV.double(), strict=True):
        p, q = torch.softmax(teacher / temperature, 0), torch.softmax(student / temperature, 0)
        if reverse:
            p, q = q, p
        for token in range(len(p)):
            total = total + p[token] * (p[token].log() - q[token].log())
    return total * temperature**2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 3, POSITIONS, 100])
def test_chunked_kl_has_the_value_and_gradients_of_the_direct_one(
    chunk: int, temperature: float, reverse: bool
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    inputs, teacher_PD = torch.randn(POSITIONS, WIDTH), torch.randn(POSITIONS, WIDTH)
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)
    direct = direct_kl(head(teacher_PD), head(inputs @ weight), temperature, reverse) / 3.0
    (expected,) = torch.autograd.grad(direct, weight)
    value = kl_backward(
        head, teacher_PD, inputs @ weight, divisor=3.0, temperature=temperature, reverse=reverse, chunk=chunk
    )
    # float32 sums of 7 x 11 terms against float64: a few units in the last place.
    assert float(value) == pytest.approx(float(direct.detach()), rel=1e-5)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_kl_of_a_model_with_itself_is_zero() -> None:
    logits_PV = torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    assert float(kl_sum(logits_PV, logits_PV)) == pytest.approx(0, abs=1e-5)


def test_kl_of_bfloat16_logits_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    teacher_PV, student_PV = (torch.randn(POSITIONS, VOCABULARY, generator=generator).bfloat16() for _ in range(2))
    value = kl_sum(teacher_PV, student_PV)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(direct_kl(teacher_PV, student_PV, 1.0, False)), rel=1e-5)


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("reverse", [False, True])
def test_tokens_that_a_model_masks_count_as_if_they_were_not_there(
    masked: float, temperature: float, reverse: bool
) -> None:
    generator = torch.Generator().manual_seed(5)
    teacher_PV, student_PV = (torch.randn(POSITIONS, VOCABULARY, generator=generator) for _ in range(2))
    expected = kl_sum(teacher_PV[:, 2:], student_PV[:, 2:], temperature=temperature, reverse=reverse)
    teacher_PV[:, :2] = student_PV[:, :2] = masked
    student_PV.requires_grad_()
    value = kl_sum(teacher_PV, student_PV, temperature=temperature, reverse=reverse)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert student_PV.grad is not None
    assert bool(student_PV.grad.isfinite().all())


def test_no_position_gives_no_loss_and_no_gradient() -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    student_PD = torch.zeros(0, WIDTH, requires_grad=True)
    value = kl_backward(head, student_PD.detach(), student_PD, divisor=1.0, temperature=1.0, reverse=False, chunk=4)
    assert float(value) == 0


def test_predicting_each_channels_mean_has_a_site_error_of_one() -> None:
    target_PX = torch.randn(50, 4, generator=torch.Generator().manual_seed(3)) + 10
    error = SiteError()
    error.add((target_PX - target_PX.mean(dim=0)).square(), target_PX)
    assert error.value() == pytest.approx(1, rel=1e-5)


def test_site_errors_of_batches_merge_to_that_of_their_sums() -> None:
    generator = torch.Generator().manual_seed(4)
    whole, parts = SiteError(), [SiteError(), SiteError()]
    for part in parts:
        target_PX, squared_PX = torch.randn(9, 4, generator=generator), torch.rand(9, 4, generator=generator)
        part.add(squared_PX, target_PX)
        whole.add(squared_PX, target_PX)
    parts[0].merge(parts[1])
    assert parts[0].value() == pytest.approx(whole.value(), rel=1e-6)


def test_a_site_error_of_nothing_is_zero() -> None:
    assert SiteError().value() == 0
