"""Gated slot attention: the kit, its formulae token by token, and where it starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_slots.config import GsaConfig
from linearize_slots.mixer import GatedSlotAttention
from torch import Tensor

from linearize.errors import BackendError
from linearize.mixing.rotary import rotate
from linearize.testing import MixerConformance, SeederConformance
from linearize.testing.numbers import positions_of

SITE = MixerConformance.site
HEADS, GROUPS, K, V = 4, 2, 6, 5


def by_formula(mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """One row, token by token, head by head and slot by slot, written from the paper's formulae."""
    config, outputs, history = mixer.config, [], []
    slots = config.num_slots
    keys, values = (torch.zeros(GROUPS, slots, width, dtype=x_TD.dtype) for width in (K, V))
    for t, token in enumerate(x_TD):
        u = torch.cat([mixer.v_proj(token), mixer.k_proj(token), mixer.q_proj(token)])
        history.append(u)
        if config.conv_width:
            u = mixer.conv1d.bias.clone()
            for back, past in enumerate(reversed(history[-config.conv_width :])):
                u = u + mixer.conv1d.weight[:, 0, config.conv_width - 1 - back] * past
            u = F.silu(u) if config.conv_activation == "silu" else u
        v, k, q = u.split([GROUPS * V, GROUPS * K, HEADS * K])
        v, k, q = v.view(GROUPS, V), k.view(GROUPS, K), q.view(HEADS, K)
        if config.qk_norm == "rms":
            q, k = (F.rms_norm(y, (K,), norm.weight, 1e-5) for y, norm in ((q, mixer.q_norm), (k, mixer.k_norm)))
        if config.rope:
            here = position[0][:, t : t + 1], position[1][:, t : t + 1]
            q, k = (rotate(y[None, None], here)[0, 0] for y in (q, k))
        alpha = torch.sigmoid(mixer.slot_proj(token) + mixer.slot_bias) ** (1 / config.decay_normalizer)
        alpha = alpha.view(GROUPS, slots)
        for group in range(GROUPS):
            for slot in range(slots):
                keep = alpha[group, slot]
                keys[group, slot] = keep * keys[group, slot] + (1 - keep) * k[group]
                values[group, slot] = keep * values[group, slot] + (1 - keep) * v[group]
        y = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            out = torch.softmax(keys[group] @ q[head] / K**0.5, 0) @ values[group]
            if config.output_norm:
                out = out / (out.square().mean() + config.norm_eps).sqrt() * mixer.g_norm.weight
            y.append(out)
        y_NV = torch.stack(y)
        outputs.append(y_NV * F.silu(mixer.g_proj(token)).view(HEADS, V) if config.gate else y_NV)
    return torch.stack(outputs)


class TestGsa(MixerConformance):
    name = "gsa"
    options = (
        {"num_slots": 7},
        {"num_slots": 4, "conv_width": 0, "output_norm": False, "gate": False, "rope": False},
        {"num_slots": 8, "conv_width": 4, "conv_activation": "silu", "qk_norm": "rms", "qkv_bias": True},
        {"num_slots": 3, "decay_normalizer": 1.0, "chunk_size": 7},
    )

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_formula(mixer, x_TD, position)


class TestMimicOfGsa(SeederConformance):
    name = "mimic"

    def mixer(self, site: Any) -> GatedSlotAttention:
        return GatedSlotAttention(GsaConfig(qkv_bias=True, num_slots=4), site)


def seeded(style: str = "mimic", **options: Any) -> GatedSlotAttention:
    mixer = GatedSlotAttention(GsaConfig(**options), SITE)
    mixer.initialize(style, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return mixer


@pytest.mark.parametrize("normalizer", [1.0, 8.0])
def test_mimic_starts_with_slots_that_average_over_2_to_1024_tokens(normalizer: float) -> None:
    mixer = seeded(num_slots=4, decay_normalizer=normalizer)
    horizons = 1 / -torch.expm1(mixer.log_decay(torch.zeros(1, 1, 12)))
    # fp32: the bias is a logit, whose rounding shows in the third digit of the longest horizon.
    wanted = torch.tensor([2.0, 16.0, 128.0, 1024.0]).expand(1, 1, GROUPS, -1)
    torch.testing.assert_close(horizons, wanted, atol=0, rtol=2e-3)


def test_slots_of_one_horizon_would_still_be_written_differently() -> None:
    g = seeded("scratch", num_slots=5).log_decay(torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(0)))
    assert len(g[0, 0, 0].unique()) == 5


def test_a_slot_for_each_token_gives_the_teachers_softmax_attention() -> None:
    mixer = seeded(num_slots=3, conv_width=0, output_norm=False, gate=False).double()
    x = torch.randn(1, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    position = positions_of([0, 1, 2], K, x)
    kept = torch.full((1, 3, GROUPS, 3), -1e-300, dtype=torch.float64)
    # Token t overwrites slot t and leaves the others alone.
    kept[0, range(3), :, range(3)] = -torch.inf
    mixer.log_decay = lambda _: kept  # type: ignore[method-assign]
    y = mixer(x, position=position)[0]
    q, k = mixer.q_proj(x).view(1, 3, HEADS, K), mixer.k_proj(x).view(1, 3, GROUPS, K)
    q, k = rotate(q, position).transpose(1, 2), rotate(k, position).transpose(1, 2)
    v = mixer.v_proj(x).view(1, 3, GROUPS, V).transpose(1, 2)
    wanted = F.scaled_dot_product_attention(q[:, :, -1:], k, v, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(y[:, -1:], wanted)


def test_the_teachers_own_scale_is_kept_inside_the_softmax() -> None:
    x = torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(1))
    plain, scaled = (GatedSlotAttention(GsaConfig(num_slots=5), replace(SITE, scale=scale)) for scale in (None, 1.0))
    plain.initialize("mimic", torch.Generator().manual_seed(0))
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.q_proj.weight.mul_(K**0.5)
        assert torch.allclose(plain(x)[0], scaled(x)[0], atol=1e-5)


def test_query_heads_that_share_keys_share_slots() -> None:
    _, state = seeded(num_slots=9)(torch.randn(2, 5, 12))
    assert {name: tuple(tensor.shape) for name, tensor in state.items() if name != "conv"} == {
        "slot_keys": (2, GROUPS, K, 9), "slot_values": (2, GROUPS, 9, V),
    }  # fmt: skip


def test_the_gates_keep_fp32_in_a_bf16_model() -> None:
    mixer = seeded(num_slots=4)
    before = mixer.slot_bias.detach().clone()
    mixer.bfloat16()
    assert torch.equal(mixer.slot_bias, before)
    y, state = mixer(torch.randn(1, 5, 12).bfloat16())
    assert (y.dtype, state["slot_keys"].dtype, state["slot_values"].dtype) == (
        torch.bfloat16, torch.float32, torch.float32,
    )  # fmt: skip


def test_bf16_autocast_is_near_fp32_in_output_and_gradients() -> None:
    mixer = seeded("scratch", num_slots=8)
    x = torch.randn(2, 100, 12, generator=torch.Generator().manual_seed(1))
    results = []
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            y, state = mixer(x)
            gradients = torch.autograd.grad(y.float().square().sum(), list(mixer.parameters()))
        assert state["slot_keys"].dtype == torch.float32
        results.append([y.detach(), *gradients])
    for found, wanted in zip(results[1], results[0], strict=True):
        # bf16 carries 8 bits; projections, convolution, norms and products round a handful of times.
        assert float((found.float() - wanted).norm() / wanted.norm()) < 0.1


def test_strong_gates_stay_finite() -> None:
    mixer = seeded("scratch", num_slots=4)
    with torch.no_grad():
        mixer.slot_bias.fill_(-2000.0)
    x = torch.randn(2, 70, 12, requires_grad=True)
    mixer(x)[0].square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in mixer.parameters())


def test_the_kernels_are_described_before_anything_runs() -> None:
    assert [line.split(":")[0] for line in seeded().describe_backends("cpu")] == ["slots on cpu", "conv on cpu"]
    with pytest.raises(BackendError, match="'fla' was asked for 'slots' on cpu"):
        seeded(backend="fla").describe_backends("cpu")
