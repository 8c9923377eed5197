"""The torch reference of the gated recurrence against a loop over tokens in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linearize.ops import chunks
from linearize.ops.gated import gated_recurrence, ssd_recurrence

# The widest relative error seen in fp32 is 3e-6 of the largest entry; the room is for other processors' sums.
FP32 = 3e-5


def loop(q, k, v, g, write=None, scale=1.0, state=None, segments=None) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """One token after the other, as the formula stands."""
    batch, length, heads, key_dim = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    if state is None:
        state = q.new_zeros(batch, heads, key_dim, v.shape[-1])
    outputs = []
    for t in range(length):
        if segments is not None and t > 0:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        new = k[:, t, :, :, None] * v[:, t, :, None, :]
        if write is not None:
            new = new * write[:, t, :, None, None]
        state = state * g[:, t].exp()[..., None, None] + new
        outputs.append(scale * torch.einsum("bnk,bnkv->bnv", q[:, t], state))
    return torch.stack(outputs, 1), state


def draw(length, *, decay=0.2, groups=2, batch=2, heads=4, key_dim=5, value_dim=3, seed=0):  # type: ignore[no-untyped-def]
    """q, k, v, g, write, state in fp64, gradients wanted."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (normal(batch, length, n, x) for n, x in ((heads, key_dim), (groups, key_dim), (groups, value_dim)))
    g = -decay * torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    write = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in (q, k, v, g, write, normal(batch, heads, key_dim, value_dim))]


def run(function, tensors, dtype, **options):  # type: ignore[no-untyped-def]
    """Output, final state and the gradient of a fixed mixture of both for every tensor."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    q, k, v, g, write, state = leaves
    y, final = function(q, k, v, g, **options, **_named(function, write, state))
    generator = torch.Generator().manual_seed(1)
    toward = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, final)]
    gradients = torch.autograd.grad((y, final), leaves, toward)
    return [y.detach(), final.detach(), *gradients]


def _named(function, write, state):  # type: ignore[no-untyped-def]
    if function is loop:
        return {"write": write, "state": state}
    return {"write_BTN": write, "state_BNKV": state}


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("y", "state", "dq", "dk", "dv", "dg", "dwrite", "dstate"), found, wanted, strict=True):
        error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)
        assert a.shape == b.shape
        assert error <= tolerance, f"{name} is off by {error:.1e} of its largest entry"


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_and_every_gradient_equal_the_loop_in_fp64(length: int, groups: int) -> None:
    tensors = draw(length, groups=groups)
    assert_near(run(gated_recurrence, tensors, torch.float64, chunk_size=16), run(loop, tensors, torch.float64), 1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.2, 4.0, 40.0])
@pytest.mark.parametrize("chunk_size", [7, 128])
def test_fp32_equals_the_loop_for_weak_and_strong_decays(decay: float, chunk_size: int) -> None:
    tensors = draw(33, decay=decay)
    found = run(gated_recurrence, tensors, torch.float32, chunk_size=chunk_size)
    assert_near(found, run(loop, tensors, torch.float64), FP32)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_a_segment_starts_with_an_empty_state(decay: float) -> None:
    tensors = draw(29, decay=decay)
    segments = torch.tensor([[0] * 3 + [1] * 11 + [2] * 15, [5] * 20 + [4] + [5] * 8])
    found = run(gated_recurrence, tensors, torch.float64, chunk_size=8, segments_BT=segments)
    assert_near(found, run(loop, tensors, torch.float64, segments=segments), 1e-12)


def test_the_scale_multiplies_the_output() -> None:
    tensors = draw(9)
    wanted = run(loop, tensors, torch.float64, scale=0.25)
    assert_near(run(gated_recurrence, tensors, torch.float64, scale=0.25), wanted, 1e-12)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_calls_that_hand_the_state_on_equal_one_in_value_and_every_gradient(decay: float) -> None:
    def in_calls(q, k, v, g, *, write_BTN, state_BNKV):  # type: ignore[no-untyped-def]
        parts = []
        for span in (slice(0, 13), slice(13, 14), slice(14, 21)):
            part, state_BNKV = gated_recurrence(
                q[:, span], k[:, span], v[:, span], g[:, span], write_BTN=write_BTN[:, span], state_BNKV=state_BNKV,
                chunk_size=8,
            )  # fmt: skip
            parts.append(part)
        return torch.cat(parts, 1), state_BNKV

    tensors = draw(21, decay=decay)
    assert_near(run(in_calls, tensors, torch.float64), run(loop, tensors, torch.float64), 1e-12)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_pads_on_the_left_leave_values_and_every_gradient_as_they_were(decay: float) -> None:
    """A pad neither writes nor decays, whatever its q, k and v are; rows have different numbers of them."""
    pads, tensors = (5, 18), draw(33, decay=decay)

    def padded(q, k, v, g, *, write_BTN, state_BNKV):  # type: ignore[no-untyped-def]
        real = torch.stack([torch.arange(33) >= count for count in pads]).unsqueeze(-1)
        return gated_recurrence(q, k, v, g * real, write_BTN=write_BTN * real, state_BNKV=state_BNKV, chunk_size=8)

    def alone(q, k, v, g, *, write_BTN, state_BNKV):  # type: ignore[no-untyped-def]
        ys, states = [], []
        for row, count in enumerate(pads):
            q_1, k_1, v_1, g_1, write_1 = (x[row : row + 1, count:] for x in (q, k, v, g, write_BTN))
            y, state = loop(q_1, k_1, v_1, g_1, write=write_1, state=state_BNKV[row : row + 1])
            # A pad reads the state that its row starts with.
            start = state_BNKV[row : row + 1].unsqueeze(1)
            ys.append(torch.cat([(q[row : row + 1, :count].unsqueeze(-2) @ start).squeeze(-2), y], 1))
            states.append(state)
        return torch.cat(ys), torch.cat(states)

    assert_near(run(padded, tensors, torch.float64), run(alone, tensors, torch.float64), 1e-12)


@pytest.mark.parametrize("decay", [30.0, 1e4])
def test_one_decay_that_empties_the_state_costs_the_others_no_precision(decay: float) -> None:
    tensors = draw(24)
    with torch.no_grad():
        tensors[3][:, 14] = -decay
    assert_near(run(gated_recurrence, tensors, torch.float32), run(loop, tensors, torch.float64), FP32)


@pytest.mark.parametrize("decay", [30.0, 1e4])
def test_decays_that_leave_fp32_give_finite_gradients(decay: float) -> None:
    tensors = draw(70, decay=decay)
    assert all(x.isfinite().all() for x in run(gated_recurrence, tensors, torch.float32))


def test_the_quadratic_form_without_factors_equals_the_factored_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = draw(20)
    factored = run(gated_recurrence, tensors, torch.float64, chunk_size=8)
    monkeypatch.setattr(chunks, "FACTORED_RANGE", -1.0)
    assert_near(run(gated_recurrence, tensors, torch.float64, chunk_size=8), factored, 1e-12)


def test_bf16_inputs_give_bf16_outputs_and_an_fp32_state_as_near_as_their_rounding() -> None:
    tensors = [x.detach().bfloat16() for x in draw(50)]
    q, k, v, g, write, _ = tensors
    y, state = gated_recurrence(q, k, v, g, write_BTN=write)
    y_loop, state_loop = loop(*(x.double() for x in (q, k, v, g)), write=write.double())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    # Only the output is rounded to bf16 (8 bits); the state is not.
    torch.testing.assert_close(y.double(), y_loop, atol=1e-5, rtol=2**-8)
    torch.testing.assert_close(state.double(), state_loop, atol=1e-5, rtol=1e-5)


def test_autocast_does_not_touch_the_recurrence() -> None:
    q, k, v, g, write, _ = (x.detach().float() for x in draw(20))
    y, _ = gated_recurrence(q, k, v, g, write_BTN=write)
    with torch.autocast("cpu", torch.bfloat16):
        y_autocast, _ = gated_recurrence(q, k, v, g, write_BTN=write)
    assert torch.equal(y, y_autocast)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_a_backward_pass_inside_autocast_is_fp32_too(decay: float) -> None:
    tensors = [x.detach().float().requires_grad_() for x in draw(40, decay=decay)]

    def call() -> Tensor:
        q, k, v, g, write, state = tensors
        y, final = gated_recurrence(q, k, v, g, write_BTN=write, state_BNKV=state, chunk_size=16)
        return y.square().sum() + final.square().sum()

    wanted = torch.autograd.grad(call(), tensors)
    # Layer stages run both inside autocast; a mixer may have turned it off for the forward alone.
    for is_forward_inside in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_forward_inside):
            loss = call()
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(loss, tensors)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_graph_that_is_kept_can_be_differentiated_again() -> None:
    tensors = draw(20)
    y, _ = gated_recurrence(*tensors[:4], write_BTN=tensors[4], state_BNKV=tensors[5])
    first = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(y.sum(), tensors), strict=True))


@pytest.mark.parametrize("length", [1, 11, 63, 200])
@pytest.mark.parametrize("strength", [1.0, 100.0])
@pytest.mark.parametrize("is_packed", [False, True])
def test_ssd_is_the_gated_recurrence_with_one_time_step_for_decay_and_write(
    length: int, strength: float, is_packed: bool
) -> None:
    """In value and in every gradient, that of the time step and of A among them."""
    q, k, v, _, dt, state = (x.detach() for x in draw(length))
    segments = torch.arange(length).div(5, rounding_mode="floor").expand(2, -1) if is_packed else None
    a = -strength * torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, wanted = [], []
    for results, is_loop in ((found, False), (wanted, True)):
        leaves = q, k, v, dt, a, state = [x.detach().requires_grad_() for x in (q, k, v, dt, a, state)]
        if is_loop:
            outputs = loop(q, k, v, dt * a, write=dt, state=state, segments=segments)
        else:
            outputs = ssd_recurrence(q, k, v, dt, a, state_BNKV=state, segments_BT=segments)
        toward = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double() for x in outputs]
        results += [*outputs, *torch.autograd.grad(outputs, leaves, toward)]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, g, *_ = (x.detach() for x in draw(6))
    with pytest.raises(ValueError, match=r"g has shape \(2, 5, 4\); .* it must be \(2, 6, 4\)"):
        gated_recurrence(q, k, v, g[:, 1:])
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        gated_recurrence(q, k.repeat(1, 1, 2, 1)[:, :, :3], v.repeat(1, 1, 2, 1)[:, :, :3], g)
