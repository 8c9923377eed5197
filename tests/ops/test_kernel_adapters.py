"""What surrounds the kernels (layouts, shared heads, packed rows, carried state), with slow stand-ins for the kernels.

The stand-ins are in conftest.py; whether the real kernels compute the same is tested on a CUDA device in tests/gpu.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops import channel_gated, conv, gated
from linearize.ops import delta as delta_rule


def ssd_leaves(tokens: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    leaves = [normal(batch, tokens, 4, 3), normal(batch, tokens, 2, 3), normal(batch, tokens, 2, 5)]
    leaves += [normal(batch, tokens, 4).abs(), -normal(4).abs(), normal(batch, 4, 3, 5)]
    return [leaf.requires_grad_() for leaf in leaves]


def compare(ours: Any, theirs: Any, leaves: list[Tensor]) -> None:
    found, wanted = ours(*leaves), theirs(*leaves)
    toward = [torch.randn(y.shape, generator=torch.Generator().manual_seed(3)) for y in wanted]
    gradients = [torch.autograd.grad(ys, leaves, toward, materialize_grads=True) for ys in (found, wanted)]
    for a, b in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        # Both are fp32 with sums in different order.
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


SEGMENTS = torch.tensor([[4, 4, 4, 1, 1, 2, 2, 2, 2], [8] * 9])


@pytest.mark.parametrize("name", ["fla_kernels", "mamba_ssm_kernels"])
@pytest.mark.parametrize(("tokens", "segments"), [(1, None), (9, None), (9, SEGMENTS)])
@pytest.mark.parametrize("carried", [False, True])
def test_ssd_adapters_equal_the_reference(
    adapters: dict[str, ModuleType], name: str, tokens: int, segments: Tensor | None, carried: bool
) -> None:
    def call(function: Any) -> Any:
        return lambda q, k, v, dt, a, *state: function(
            q, k, v, dt, a, state_BNKV=state[0] if state else None, segments_BT=segments
        )

    leaves = ssd_leaves(tokens)
    compare(call(adapters[name].ssd_recurrence), call(gated.ssd_recurrence), leaves if carried else leaves[:5])


@pytest.mark.parametrize("name", ["fla_kernels", "mamba_ssm_kernels"])
@pytest.mark.parametrize("carried", [False, True])
def test_decode_steps_equal_the_reference_and_leave_the_given_state_alone(
    adapters: dict[str, ModuleType], name: str, carried: bool
) -> None:
    *inputs, state = (leaf.detach() for leaf in ssd_leaves(1))
    given = state.clone() if carried else None
    with torch.no_grad():
        found = adapters[name].ssd_recurrence(*inputs, state_BNKV=given)
        wanted = gated.ssd_recurrence(*inputs, state_BNKV=state if carried else None)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    if carried:
        assert torch.equal(given, state)  # type: ignore[arg-type]


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("carried", [False, True])
def test_odd_widths_in_bf16_reach_the_chunk_kernel_even_and_come_back_as_they_were(
    adapters: dict[str, ModuleType], carried: bool, segments: Tensor | None
) -> None:
    def call(function: Any) -> Any:
        return lambda q, k, v, g, *state: function(
            q.bfloat16(), k.bfloat16(), v.bfloat16(), -g, state_BNKV=state[0] if state else None, segments_BT=segments
        )

    q, k, v, g, _, state = ssd_leaves(9)
    leaves = [q, k, v, g, *([state] if carried else [])]
    assert (q.shape[-1] % 2, v.shape[-1] % 2) == (1, 1)
    found, wanted = call(adapters["fla_kernels"].gated_recurrence)(*leaves), call(gated.gated_recurrence)(*leaves)
    toward = [torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype) for y in wanted]
    gradients = [torch.autograd.grad(ys, leaves, toward) for ys in (found, wanted)]
    for a, b in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        assert a.shape == b.shape
        # Both compute in fp32; outputs, and gradients of what is bf16, are rounded to 8 bits.
        assert float((a.float() - b.float()).norm().detach() / b.float().norm().detach()) < 0.01


def test_the_gated_adapter_scales_and_needs_no_write_strength(adapters: dict[str, ModuleType]) -> None:
    q, k, v, dt, *_ = ssd_leaves(7)
    compare(
        lambda q, k, v, dt: adapters["fla_kernels"].gated_recurrence(q, k, v, -dt, scale=0.5),
        lambda q, k, v, dt: gated.gated_recurrence(q, k, v, -dt, scale=0.5),
        [q, k, v, dt],
    )


FAMILIES = ("channel_gated", "deltanet", "gated_deltanet", "kda")


def family_leaves(family: str, tokens: int) -> dict[str, Tensor]:
    """By the names of the reference's arguments."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    leaves = {"q_BTNK": normal(2, tokens, 4, 3), "k_BTMK": F.normalize(normal(2, tokens, 2, 3), dim=-1)}
    leaves["v_BTMV"] = normal(2, tokens, 2, 5)
    leaves["write_BTN" if family == "channel_gated" else "beta_BTN"] = torch.rand(2, tokens, 4, generator=generator)
    if family != "deltanet":
        widths = (4,) if family == "gated_deltanet" else (4, 3)
        leaves["g_BTNK" if family == "channel_gated" else "g"] = -normal(2, tokens, *widths).abs()
    leaves["state_BNKV"] = normal(2, 4, 3, 5)
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def family_functions(adapters: dict[str, ModuleType], family: str) -> tuple[Any, Any]:
    """The adapter's function and the reference's."""
    if family == "channel_gated":
        return (
            adapters["fla_channel_kernels"].channel_gated_recurrence, channel_gated.channel_gated_recurrence,
        )  # fmt: skip
    return adapters["fla_delta_kernels"].delta_recurrence, delta_rule.delta_recurrence


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tokens", "segments"), [(1, None), (9, None), (9, SEGMENTS)])
@pytest.mark.parametrize("carried", [False, True])
def test_adapters_of_channel_decays_and_delta_rules_equal_the_reference(
    adapters: dict[str, ModuleType], family: str, tokens: int, segments: Tensor | None, carried: bool
) -> None:
    leaves = family_leaves(family, tokens)
    if not carried:
        del leaves["state_BNKV"]
    ours, theirs = (
        lambda *given, function=function: function(
            **dict(zip(leaves, given, strict=True)), segments_BT=segments, scale=0.7
        )
        for function in family_functions(adapters, family)
    )
    compare(ours, theirs, list(leaves.values()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "segments"), [(1, None), (9, None), (9, SEGMENTS)])
def test_without_gradients_the_adapters_equal_the_reference_and_leave_the_given_state_alone(
    adapters: dict[str, ModuleType], family: str, carried: bool, dtype: torch.dtype, tokens: int,
    segments: Tensor | None,
) -> None:  # fmt: skip
    inputs = {name: leaf.detach().to(dtype) for name, leaf in family_leaves(family, tokens).items()}
    last = inputs.pop("state_BNKV").float()
    state = last if carried else None
    given = None if state is None else state.clone()
    ours, theirs = family_functions(adapters, family)
    with torch.no_grad():
        found = ours(**inputs, state_BNKV=given, segments_BT=segments, scale=0.7)
        wanted = theirs(**inputs, state_BNKV=state, segments_BT=segments, scale=0.7)
    assert [tensor.dtype for tensor in found] == [dtype, torch.float32]
    # In bf16, what is written is rounded before the kernel, and the output behind it.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    if given is not None:
        assert torch.equal(given, last)


def test_keys_wider_than_the_delta_kernels_go_to_the_reference(
    adapters: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapters["fla_delta_kernels"]
    monkeypatch.setattr(adapter, "call_kernel", None)
    q, v, beta = torch.randn(1, 5, 2, 257), torch.randn(1, 5, 2, 3), torch.rand(1, 5, 2)
    k = F.normalize(q, dim=-1)
    for found, wanted in zip(
        adapter.delta_recurrence(q, k, v, beta), delta_rule.delta_recurrence(q, k, v, beta), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["fla_kernels", "causal_conv1d_kernels"])
@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("special", ["", "padded", "packed"])
def test_convolution_adapters_equal_the_reference(
    adapters: dict[str, ModuleType], name: str, tokens: int, carried: bool, special: str
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2, tokens, 8), (8, 3), (8,), (2, 8, 2))
    leaves = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    valid = torch.arange(9)[:tokens].expand(2, -1) >= torch.tensor([[0], [1]]) if special == "padded" else None
    segments = SEGMENTS[:, :tokens] if special == "packed" else None

    def call(function: Any) -> Any:
        return lambda x, weight, bias, *state: function(
            x, weight, bias, state_BCX=state[0] if state else None, valid_BT=valid, segments_BT=segments
        )

    compare(call(adapters[name].causal_conv), call(conv.causal_conv), leaves if carried else leaves[:3])


@pytest.mark.parametrize(("channels", "width"), [(8, 5), (7, 2)])
def test_causal_conv1d_leaves_what_its_kernel_cannot_do_to_the_reference(
    adapters: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, channels: int, width: int
) -> None:
    adapter = adapters["causal_conv1d_kernels"]
    monkeypatch.setattr(adapter, "causal_conv1d_fn", None)
    x, weight = torch.randn(1, 9, channels), torch.randn(channels, width)
    assert torch.equal(adapter.causal_conv(x, weight)[0], conv.causal_conv(x, weight)[0])
