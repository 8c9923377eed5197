"""The torch references of the channel-gated and the delta recurrence against a loop over tokens in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops import chunks, decays
from linearize.ops.channel_gated import channel_gated_recurrence
from linearize.ops.delta import delta_recurrence

# The widest relative error seen in fp32 is 5e-6 of the largest entry; the room is for other processors' sums.
FP32 = 3e-5
# Recurrence -> the shape of its decay behind [B, T]: one per key channel, one per head, none.
FAMILIES = {"channel_gated": "NK", "deltanet": "", "gated_deltanet": "N", "kda": "NK"}
DECAYING = [name for name, shape in FAMILIES.items() if shape]
PER_CHANNEL = [name for name, shape in FAMILIES.items() if shape == "NK"]
HEADS, KEY_DIM, VALUE_DIM = 4, 5, 3


def loop(
    family: str, q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor | None, state: Tensor | None,
    *, scale: float = 1.0, segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token after the other, as the formulae stand."""
    batch, length, heads, key_dim = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    if state is None:
        state = q.new_zeros(batch, heads, key_dim, v.shape[-1])
    outputs = []
    for t in range(length):
        if segments is not None and t > 0:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        if g is not None:
            state = state * (g[:, t].exp()[..., None] if g.dim() == 4 else g[:, t].exp()[..., None, None])
        new = v[:, t]
        if family != "channel_gated":
            new = new - torch.einsum("bnk,bnkv->bnv", k[:, t], state)
        state = state + write[:, t, :, None, None] * k[:, t, :, :, None] * new[:, :, None, :]
        outputs.append(scale * torch.einsum("bnk,bnkv->bnv", q[:, t], state))
    return torch.stack(outputs, 1), state


def call(
    family: str, q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor | None, state: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The reference of a family, with the arguments in the order of :func:`loop`."""
    if family == "channel_gated":
        assert g is not None
        return channel_gated_recurrence(q, k, v, g, write_BTN=write, state_BNKV=state, **options)
    return delta_recurrence(q, k, v, write, g, state_BNKV=state, **options)


def draw(family: str, length: int, *, decay: float = 0.2, groups: int = 2, batch: int = 2) -> list[Tensor | None]:
    """q, k of unit length, v, write, g, state in fp64, gradients wanted."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, v = normal(batch, length, HEADS, KEY_DIM), normal(batch, length, groups, VALUE_DIM)
    k = F.normalize(normal(batch, length, groups, KEY_DIM), dim=-1)
    write = torch.rand(batch, length, HEADS, generator=generator, dtype=torch.float64)
    widths = {"": None, "N": (HEADS,), "NK": (HEADS, KEY_DIM)}[FAMILIES[family]]
    g = None
    if widths is not None:
        g = -decay * torch.rand(batch, length, *widths, generator=generator, dtype=torch.float64)
    tensors = [q, k, v, write, g, normal(batch, HEADS, KEY_DIM, VALUE_DIM)]
    return [None if x is None else x.requires_grad_() for x in tensors]


def detached(tensors: list[Tensor | None], dtype: torch.dtype = torch.float64) -> list[Any]:
    return [None if x is None else x.detach().to(dtype) for x in tensors]


Named = dict[str, Tensor]


def run(
    function: Callable[..., tuple[Tensor, Tensor]], family: str, tensors: list[Tensor | None],
    dtype: torch.dtype = torch.float64, **options: Any,
) -> Named:  # fmt: skip
    """Output, final state and the gradient of a fixed mixture of both for every tensor."""
    given = [None if x is None else x.detach().to(dtype).requires_grad_() for x in tensors]
    y, final = function(family, *given, **options)
    generator = torch.Generator().manual_seed(1)
    toward = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, final)]
    leaves = {name: x for name, x in zip(("q", "k", "v", "write", "g", "state"), given, strict=True) if x is not None}
    gradients = torch.autograd.grad((y, final), list(leaves.values()), toward, allow_unused=function is loop)
    found = {f"d{name}": dx for name, dx in zip(leaves, gradients, strict=True)}
    return {"y": y.detach(), "final": final.detach(), **found}


def assert_near(found: Named, wanted: Named, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, b in wanted.items():
        a = found[name]
        error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)
        assert a.shape == b.shape
        assert error <= tolerance, f"{name} is off by {error:.1e} of its largest entry"


every_family = pytest.mark.parametrize("family", list(FAMILIES))
every_decaying = pytest.mark.parametrize("family", DECAYING)


@every_family
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_and_every_gradient_equal_the_loop_in_fp64(family: str, length: int, groups: int) -> None:
    tensors = draw(family, length, groups=groups)
    assert_near(run(call, family, tensors, chunk_size=16), run(loop, family, tensors), 1e-11)


@every_decaying
@pytest.mark.parametrize("decay", [0.0, 0.2, 4.0, 40.0])
@pytest.mark.parametrize("chunk_size", [7, 64])
def test_fp32_equals_the_loop_for_weak_and_strong_decays(family: str, decay: float, chunk_size: int) -> None:
    tensors = draw(family, 33, decay=decay)
    found = run(call, family, tensors, torch.float32, chunk_size=chunk_size)
    assert_near(found, run(loop, family, tensors), FP32)


@every_decaying
@pytest.mark.parametrize("decay", [30.0, 300.0, 1e4])
def test_one_decay_that_empties_the_state_costs_the_others_no_precision(family: str, decay: float) -> None:
    tensors = draw(family, 24)
    g = tensors[4]
    assert g is not None
    with torch.no_grad():
        g[:, 11] = -decay
        g[:, 17, 1] = -decay
    assert_near(run(call, family, tensors, torch.float32), run(loop, family, tensors), FP32)


@every_decaying
@pytest.mark.parametrize("decay", [30.0, 1e4])
def test_decays_that_leave_fp32_give_finite_gradients(family: str, decay: float) -> None:
    found = run(call, family, draw(family, 70, decay=decay), torch.float32)
    assert all(x.isfinite().all() for x in found.values())


@every_family
@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_a_segment_starts_with_an_empty_state(family: str, decay: float) -> None:
    tensors = draw(family, 29, decay=decay)
    segments = torch.tensor([[0] * 3 + [1] * 11 + [2] * 15, [5] * 20 + [4] + [5] * 8])
    found = run(call, family, tensors, chunk_size=8, segments_BT=segments)
    assert_near(found, run(loop, family, tensors, segments=segments), 1e-11)


@every_family
@pytest.mark.parametrize("length", [1, 9])
def test_the_scale_multiplies_the_output(family: str, length: int) -> None:
    tensors = draw(family, length)
    assert_near(run(call, family, tensors, scale=0.3), run(loop, family, tensors, scale=0.3), 1e-11)


@every_family
def test_the_state_may_be_left_out(family: str) -> None:
    for length in (1, 5, 20):
        tensors = detached(draw(family, length))
        tensors[-1] = None
        for found, wanted in zip(call(family, *tensors, chunk_size=8), loop(family, *tensors), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-11)


@every_family
@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_calls_that_hand_the_state_on_equal_one_in_value_and_every_gradient(family: str, decay: float) -> None:
    def in_calls(family: str, *given: Any) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        parts = []
        for span in (slice(0, 13), slice(13, 14), slice(14, 21)):
            q, k, v, write, g = (x if x is None else x[:, span] for x in inputs)
            part, state = call(family, q, k, v, write, g, state, chunk_size=8)
            parts.append(part)
        return torch.cat(parts, 1), state

    tensors = draw(family, 21, decay=decay)
    assert_near(run(in_calls, family, tensors), run(loop, family, tensors), 1e-11)


@every_family
@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_pads_on_the_left_leave_values_and_every_gradient_as_they_were(family: str, decay: float) -> None:
    """A pad neither writes nor decays, whatever its q, k and v are; rows have different numbers of them."""
    pads, tensors = (5, 18), draw(family, 33, decay=decay)
    real_BT = torch.stack([torch.arange(33) >= count for count in pads])

    def padded(
        family: str, q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        g = None if g is None else g * real_BT[(...,) + (None,) * (g.dim() - 2)]
        return call(family, q, k, v, write * real_BT.unsqueeze(-1), g, state, chunk_size=8)

    def alone(
        family: str, q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        ys, states = [], []
        for row, count in enumerate(pads):
            q_1, k_1, v_1, write_1 = (x[row : row + 1, count:] for x in (q, k, v, write))
            g_1, start = None if g is None else g[row : row + 1, count:], state[row : row + 1]
            y, final = loop(family, q_1, k_1, v_1, write_1, g_1, start)
            # A pad reads the state that its row starts with.
            before = (q[row : row + 1, :count].unsqueeze(-2) @ start.unsqueeze(1)).squeeze(-2)
            ys.append(torch.cat([before, y], 1))
            states.append(final)
        return torch.cat(ys), torch.cat(states)

    assert_near(run(padded, family, tensors), run(alone, family, tensors), 1e-11)


def test_the_delta_rule_replaces_what_a_key_finds() -> None:
    k = F.normalize(torch.randn(1, 2, 1, KEY_DIM, dtype=torch.float64), dim=-1)
    k[:, 1] = k[:, 0]
    v = torch.randn(1, 2, 1, VALUE_DIM, dtype=torch.float64)
    y, _ = delta_recurrence(k, k, v, torch.ones(1, 2, 1, dtype=torch.float64))
    torch.testing.assert_close(y, v)


@every_family
@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_beta_up_to_two_is_exact_too(family: str, decay: float) -> None:
    tensors = draw(family, 40, decay=decay)
    write = tensors[3]
    assert write is not None
    with torch.no_grad():
        write.mul_(2)
    assert_near(run(call, family, tensors), run(loop, family, tensors), 1e-11)


@pytest.mark.parametrize("family", PER_CHANNEL)
@pytest.mark.parametrize("length", [3, 8, 21])
def test_decays_by_halves_equal_decays_by_factors(family: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = draw(family, length)
    factored = run(call, family, tensors, chunk_size=8)
    monkeypatch.setattr(chunks, "FACTORED_RANGE", -1.0)
    monkeypatch.setattr(decays, "by_factors", None)
    assert_near(run(call, family, tensors, chunk_size=8), factored, 1e-12)


@every_family
def test_bf16_inputs_give_bf16_outputs_and_an_fp32_state_as_near_as_their_rounding(family: str) -> None:
    tensors = detached(draw(family, 50), torch.bfloat16)
    y, state = call(family, *tensors)
    y_loop, state_loop = loop(family, *detached(tensors))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    # Only the output is rounded to bf16 (8 bits); the state is not.
    torch.testing.assert_close(y.double(), y_loop, atol=1e-5, rtol=2**-8)
    torch.testing.assert_close(state.double(), state_loop, atol=1e-5, rtol=1e-5)


@every_family
@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_autocast_does_not_touch_the_recurrence_nor_its_backward_pass(family: str, decay: float) -> None:
    tensors = draw(family, 40, decay=decay)
    wanted = run(call, family, tensors, torch.float32, chunk_size=16)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(call, family, tensors, torch.float32, chunk_size=16)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@every_family
def test_a_step_leaves_the_given_state_alone(family: str) -> None:
    *inputs, state = detached(draw(family, 1))
    before = state.clone()
    call(family, *inputs, state)
    assert torch.equal(state, before)


@every_family
def test_shapes_that_do_not_fit_are_named(family: str) -> None:
    q, k, v, write, g, state = detached(draw(family, 6))
    if g is not None:
        due = r"\(2, 6, 4\)" if g.dim() == 3 else r"\(2, 6, 4, 5\)"
        with pytest.raises(ValueError, match=rf"g has shape \(2, 5, 4.*\); .* it must be {due}"):
            call(family, q, k, v, write, g[:, 1:], state)
    name = "write" if family == "channel_gated" else "beta"
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 6, 3\); .* it must be \(2, 6, 4\)"):
        call(family, q, k, v, write[..., 1:], g, state)
    with pytest.raises(ValueError, match=r"state has shape \(2, 4, 5, 2\); .* it must be \(2, 4, 5, 3\)"):
        call(family, q, k, v, write, g, state[..., 1:])
    three = (x.repeat(1, 1, 2, 1)[:, :, :3] for x in (k, v))
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        call(family, q, *three, write, g, state)
