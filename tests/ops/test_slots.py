"""The torch reference of gated slot attention against a loop over tokens in float64, and fla's adapter around it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from linearize.ops import chunks, decays
from linearize.ops import slots as slots_op
from linearize.ops.slots import slot_attention

# The widest relative error seen in fp32 is 3e-6 of the largest entry; the room is for other processors' sums.
FP32 = 3e-5
HEADS, KEY_DIM, VALUE_DIM, SLOTS = 4, 5, 3, 6
NAMES = ("q", "k", "v", "write", "g", "keys", "values")


def loop(
    q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor, keys: Tensor | None, values: Tensor | None,
    *, scale: float = 1.0, segments_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One token after the other: every query head reads the slots of its key-value head by a softmax."""
    batch, length, heads, key_dim = q.shape
    groups, slots = g.shape[2:]
    keys = q.new_zeros(batch, groups, key_dim, slots) if keys is None else keys
    values = q.new_zeros(batch, groups, slots, v.shape[-1]) if values is None else values
    outputs = []
    for t in range(length):
        if segments_BT is not None and t > 0:
            goes_on = (segments_BT[:, t] == segments_BT[:, t - 1])[:, None, None, None]
            keys, values = keys * goes_on, values * goes_on
        keep = g[:, t].exp()
        keys = keys * keep[:, :, None, :] + k[:, t, :, :, None] * write[:, t, :, None, :]
        values = values * keep[:, :, :, None] + write[:, t, :, :, None] * v[:, t, :, None, :]
        ys = []
        for head in range(heads):
            group = head // (heads // groups)
            weights = torch.softmax(scale * torch.einsum("bk,bks->bs", q[:, t, head], keys[:, group]), -1)
            ys.append(torch.einsum("bs,bsv->bv", weights, values[:, group]))
        outputs.append(torch.stack(ys, 1))
    return torch.stack(outputs, 1), keys, values


def through(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A function of the operation's shape, with the arguments and results of :func:`loop`."""

    def call(*given: Tensor | None, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, keys, values = given
        results: tuple[Tensor, Tensor, Tensor] = function(
            *inputs, slot_keys_BMKS=keys, slot_values_BMSV=values, **options
        )
        return results

    return call


call = through(slot_attention)


def draw(length: int, *, decay: float = 0.2, groups: int = 2, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = normal(batch, length, HEADS, KEY_DIM), normal(batch, length, groups, KEY_DIM)
    v = normal(batch, length, groups, VALUE_DIM)
    write, g = (torch.rand(batch, length, groups, SLOTS, generator=generator, dtype=torch.float64) for _ in range(2))
    return [q, k, v, write, -decay * g, normal(batch, groups, KEY_DIM, SLOTS), normal(batch, groups, SLOTS, VALUE_DIM)]


def run(
    function: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor], dtype: torch.dtype = torch.float64,
    **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Output, final slots and the gradient of a fixed mixture of them for every tensor."""
    given = [x.detach().to(dtype).requires_grad_() for x in tensors]
    results = function(*given, *[None] * (7 - len(given)), **options)
    generator = torch.Generator().manual_seed(1)
    toward = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in results]
    gradients = torch.autograd.grad(results, given, toward, materialize_grads=True)
    names = ("y", "final keys", "final values", *(f"d{name}" for name in NAMES))
    return dict(zip(names, (*(x.detach() for x in results), *gradients), strict=False))


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, b in wanted.items():
        a = found[name]
        error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)
        assert a.shape == b.shape
        assert error <= tolerance, f"{name} is off by {error:.1e} of its largest entry"


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_and_every_gradient_equal_the_loop_in_fp64(length: int, groups: int) -> None:
    tensors = draw(length, groups=groups)
    assert_near(run(call, tensors, chunk_size=16), run(loop, tensors), 1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.2, 4.0, 40.0])
@pytest.mark.parametrize("chunk_size", [7, 64])
def test_fp32_equals_the_loop_for_weak_and_strong_decays(decay: float, chunk_size: int) -> None:
    tensors = draw(33, decay=decay)
    # Where nothing decays the slots pile up and the softmax sharpens: unit keys' sums, as the gates' are in use.
    tensors[3] = tensors[3] / 33 if decay == 0.0 else tensors[3]
    assert_near(run(call, tensors, torch.float32, chunk_size=chunk_size), run(loop, tensors), FP32)


@pytest.mark.parametrize("decay", [30.0, 1e4])
def test_one_decay_that_empties_the_slots_costs_the_others_no_precision(decay: float) -> None:
    tensors = draw(24)
    tensors[4][:, 11] = -decay
    tensors[4][:, 17, 1] = -decay
    assert_near(run(call, tensors, torch.float32), run(loop, tensors), FP32)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_a_segment_starts_with_empty_slots(decay: float) -> None:
    tensors = draw(29, decay=decay)
    segments = torch.tensor([[0] * 3 + [1] * 11 + [2] * 15, [5] * 20 + [4] + [5] * 8])
    found = run(call, tensors, chunk_size=8, segments_BT=segments)
    assert_near(found, run(loop, tensors, segments_BT=segments), 1e-11)


@pytest.mark.parametrize("length", [3, 8, 21])
def test_decays_by_halves_equal_decays_by_factors(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = draw(length)
    factored = run(call, tensors, chunk_size=8)
    monkeypatch.setattr(chunks, "FACTORED_RANGE", -1.0)
    monkeypatch.setattr(decays, "by_factors", None)
    monkeypatch.setattr(slots_op, "_inside_by_factors", None)
    assert_near(run(call, tensors, chunk_size=8), factored, 1e-12)


@pytest.mark.parametrize("length", [1, 9])
def test_the_scale_multiplies_the_scores_of_slots(length: int) -> None:
    assert_near(run(call, draw(length), scale=0.3), run(loop, draw(length), scale=0.3), 1e-11)


def test_the_state_may_be_left_out() -> None:
    for length in (1, 5, 20):
        assert_near(run(call, draw(length)[:5], chunk_size=8), run(loop, draw(length)[:5]), 1e-11)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_calls_that_hand_the_slots_on_equal_one_in_value_and_every_gradient(decay: float) -> None:
    def in_calls(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, keys, values = given
        parts = []
        for span in (slice(0, 13), slice(13, 14), slice(14, 21)):
            part, keys, values = call(*(x[:, span] for x in inputs), keys, values, chunk_size=8)
            parts.append(part)
        return torch.cat(parts, 1), keys, values

    tensors = draw(21, decay=decay)
    assert_near(run(in_calls, tensors), run(loop, tensors), 1e-11)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_pads_on_the_left_leave_values_and_every_gradient_as_they_were(decay: float) -> None:
    """A pad neither writes nor decays, whatever its q, k and v are; rows have different numbers of them."""
    pads, tensors = (5, 18), draw(33, decay=decay)
    real = torch.stack([torch.arange(33) >= count for count in pads])[..., None, None]

    def padded(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, write, g, keys, values = given
        y, keys, values = call(q, k, v, write * real, g * real, keys, values, chunk_size=8)
        return y * real, keys, values

    def alone(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, keys, values = given
        rows = []
        for row, count in enumerate(pads):
            states = keys[row : row + 1], values[row : row + 1]
            y, *after = loop(*(x[row : row + 1, count:] for x in inputs), *states)
            rows.append((torch.cat([torch.zeros_like(inputs[0][:1, :count, :, :VALUE_DIM]), y], 1), *after))
        y, keys, values = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return y, keys, values

    assert_near(run(padded, tensors), run(alone, tensors), 1e-11)


def test_one_slot_per_token_that_forgets_nothing_is_softmax_attention() -> None:
    q, k, v = draw(SLOTS, groups=HEADS)[:3]
    write = torch.eye(SLOTS, dtype=torch.float64)[None, :, None, :].expand(2, -1, HEADS, -1)
    y, *_ = call(q, k, v, write, torch.zeros_like(write), None, None, scale=0.7)
    wanted = torch.softmax(0.7 * torch.einsum("bnk,bsnk->bns", q[:, -1], k), -1)
    torch.testing.assert_close(y[:, -1], torch.einsum("bns,bsnv->bnv", wanted, v))


def test_bf16_inputs_give_bf16_outputs_and_fp32_slots_as_near_as_their_rounding() -> None:
    tensors = [x.bfloat16() for x in draw(50)]
    y, keys, values = call(*tensors)
    y_loop, keys_loop, values_loop = loop(*(x.double() for x in tensors))
    assert (y.dtype, keys.dtype, values.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    # Only the output is rounded to bf16 (8 bits); scores and slots are not.
    torch.testing.assert_close(y.double(), y_loop, atol=1e-4, rtol=2**-8)
    torch.testing.assert_close(keys.double(), keys_loop, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(values.double(), values_loop, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.2, 40.0])
def test_autocast_does_not_touch_the_slots_nor_their_backward_pass(decay: float) -> None:
    tensors = draw(40, decay=decay)
    wanted = run(call, tensors, torch.float32, chunk_size=16)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(call, tensors, torch.float32, chunk_size=16)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, write, g, keys, values = draw(6)
    with pytest.raises(ValueError, match=r"write has shape \(2, 6, 2, 5\); .* it must be \(2, 6, 2, 6\)"):
        call(q, k, v, write[..., 1:], g, keys, values)
    with pytest.raises(ValueError, match=r"g has shape \(2, 5, 2, 6\); .* it must be \(2, 6, 2, 6\)"):
        call(q, k, v, write, g[:, 1:], keys, values)
    with pytest.raises(ValueError, match=r"slot_values has shape \(2, 2, 5, 3\); .* it must be \(2, 2, 6, 3\)"):
        call(q, k, v, write, g, keys, values[:, :, 1:])
    three = [x.repeat(1, 1, 2, 1)[:, :, :3] for x in (k, v, write, g)]
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        call(q, *three, None, None)


def kernel(
    *, q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, scale: float,
    initial_state: tuple[Tensor, Tensor] | None, output_final_state: bool, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """What fla 0.6 documents of chunk_gsa: packed sequences in one row, slots per sequence and key-value head."""
    assert output_final_state
    assert q.dtype == k.dtype == v.dtype == s.dtype
    assert g.dtype == torch.float32
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    assert cu_seqlens is None or q.shape[0] == 1
    keys, values = (None, None) if initial_state is None else initial_state
    assert keys is None or keys.dtype == torch.float32
    parts = []
    for number, (first, last) in enumerate(pairwise(bounds)):
        mine = slice(None) if cu_seqlens is None else slice(number, number + 1)
        state = [None if x is None else x[mine] for x in (keys, values)]
        parts.append(loop(*(x[:, first:last].float() for x in (q, k, v, s, g)), *state, scale=scale))
    ys, *slots = zip(*parts, strict=True)
    return torch.cat(ys, 1).to(q.dtype), [torch.cat(x) for x in slots]


def step(*, q: Tensor, **rest: Any) -> tuple[Tensor, list[Tensor]]:
    assert q.shape[1] == 1
    assert not any(isinstance(x, Tensor) and x.requires_grad for x in (q, *rest.values()))
    return kernel(q=q, **rest)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    content = {"fla": {}, "fla.ops": {}, "fla.ops.gsa": {"chunk_gsa": kernel, "fused_recurrent_gsa": step}}
    for name, names in content.items():
        module = ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "linearize_kernels.fla_slot_kernels", raising=False)
    yield through(importlib.import_module("linearize_kernels.fla_slot_kernels").slot_attention)
    sys.modules.pop("linearize_kernels.fla_slot_kernels", None)


SEGMENTS = torch.tensor([[4, 4, 4, 1, 1, 2, 2, 2, 2], [8] * 9])


@pytest.mark.parametrize(("tokens", "segments"), [(1, None), (9, None), (9, SEGMENTS)])
@pytest.mark.parametrize("carried", [False, True])
def test_flas_adapter_equals_the_reference(
    adapter: Callable[..., Any], tokens: int, segments: Tensor | None, carried: bool
) -> None:
    tensors = draw(tokens)[: 7 if carried else 5]
    options = {"scale": 0.7, "segments_BT": segments}
    found, wanted = (run(function, tensors, torch.float32, **options) for function in (adapter, call))
    assert_near(found, wanted, FP32)


@pytest.mark.parametrize("carried", [False, True])
def test_flas_decode_step_equals_the_reference_and_leaves_the_given_slots_alone(
    adapter: Callable[..., Any], carried: bool
) -> None:
    *inputs, keys, values = draw(1)
    state = (keys.float(), values.float()) if carried else (None, None)
    before = [None if x is None else x.clone() for x in state]
    with torch.no_grad():
        found, wanted = (f(*(x.bfloat16() for x in inputs), *state, scale=0.7) for f in (adapter, call))
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)  # outputs are rounded to bf16
    assert all(x is None or torch.equal(x, y) for x, y in zip(state, before, strict=True))  # type: ignore[arg-type]
