"""The mixers of the delta rule: the kit, their formulae token by token, and where they start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_delta.config import GatedDeltaNetConfig, KdaConfig
from linearize_delta.mixer import DeltaNetMixer, GatedDeltaNetMixer, KdaMixer
from torch import Tensor

from linearize.errors import BackendError
from linearize.testing import MixerConformance

SITE = MixerConformance.site


def by_formula(mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """One row, token by token and head by head, written from the papers' formulae."""
    config, outputs, history = mixer.config, [], []
    heads, groups, key_dim = SITE.num_heads, mixer.num_key_value_heads, SITE.key_dim
    states = torch.zeros(heads, key_dim, SITE.value_dim, dtype=x_TD.dtype)
    for t, token in enumerate(x_TD):
        u = torch.cat([mixer.v_proj(token), mixer.k_proj(token), mixer.q_proj(token)])
        history.append(u)
        if config.conv_width:
            u = mixer.conv1d.bias.clone()
            for back, past in enumerate(reversed(history[-config.conv_width :])):
                u = u + mixer.conv1d.weight[:, 0, config.conv_width - 1 - back] * past
            u = F.silu(u) if config.conv_activation == "silu" else u
        v, k, q = u.split([groups * SITE.value_dim, groups * key_dim, heads * key_dim])
        v, k, q = v.view(groups, -1), k.view(groups, -1), q.view(heads, -1)
        k, q = (y / (y.square().sum(-1, keepdim=True) + config.norm_eps).sqrt() for y in (k, q))
        if config.rope:
            k, q = (turn(y, position[0][0, t], position[1][0, t]) for y in (k, q))
        beta = mixer.b_proj(token).sigmoid() * (2 if config.negative_eigenvalues else 1)
        y = []
        for head in range(heads):
            group = head // (heads // groups)
            state = decay_of(mixer, token, head)[:, None] * states[head]
            wrong = v[group] - state.T @ k[group]
            states[head] = state + beta[head] * torch.outer(k[group], wrong)
            out = states[head].T @ q[head]
            if config.output_norm:
                out = out / (out.square().mean() + config.norm_eps).sqrt() * mixer.g_norm.weight
            y.append(out)
        stacked = torch.stack(y)
        if config.gate:
            stacked = stacked * F.silu(mixer.g_proj(token)).view(heads, -1)
        outputs.append(stacked)
    return torch.stack(outputs)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat(
        [x[:, :half] * cos[:half] - x[:, half:] * sin[:half], x[:, half:] * cos[half:] + x[:, :half] * sin[half:]], -1
    )


def decay_of(mixer: Any, token: Tensor, head: int) -> Tensor:
    """What is left of each row of one head's state."""
    key_dim = SITE.key_dim
    if isinstance(mixer, GatedDeltaNetMixer):
        dt = F.softplus(mixer.a_proj(token)[head] + mixer.dt_bias[head])
        return torch.exp(-mixer.A_log[head].exp() * dt).expand(key_dim)
    if isinstance(mixer, KdaMixer):
        rows = slice(head * key_dim, (head + 1) * key_dim)
        dt = F.softplus(mixer.f_proj_up(mixer.f_proj_down(token))[rows] + mixer.dt_bias[rows])
        return torch.exp(-mixer.A_log[head].exp() * dt)
    return token.new_ones(key_dim)


class DeltaConformance(MixerConformance):
    options = (
        {},
        {"rope": False, "conv_width": 0, "qkv_bias": True, "key_value_heads": "per_query"},
        {"conv_width": 4, "conv_activation": "silu", "output_norm": False},
        {"negative_eigenvalues": True, "gate": False, "chunk_size": 5},
    )

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_formula(mixer, x_TD, position)


class TestDeltaNet(DeltaConformance):
    name = "delta_net"


class TestGatedDeltaNet(DeltaConformance):
    name = "gated_delta_net"


class TestKda(DeltaConformance):
    name = "kda"
    options = (*DeltaConformance.options, {"decay_rank": 2})


def seeded(mixer: Any, style: str) -> Any:
    mixer.initialize(style, torch.Generator().manual_seed(0))
    return mixer


GATED = [(GatedDeltaNetMixer, GatedDeltaNetConfig), (KdaMixer, KdaConfig)]


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize(("mixer_class", "config_class"), GATED)
def test_mimic_starts_with_averages_and_long_memories_whatever_the_input(
    mixer_class: Any, config_class: Any, doubled: bool
) -> None:
    mixer = seeded(mixer_class(config_class(negative_eigenvalues=doubled), SITE), "mimic")
    x = torch.randn(1, 3, SITE.hidden_size)
    beta = mixer.largest_beta * mixer.b_proj(x).sigmoid()
    wanted = torch.tensor([0.5, 0.5 * 0.1 ** (1 / 3), 0.5 * 0.1 ** (2 / 3), 0.05])
    torch.testing.assert_close(beta, wanted.expand_as(beta))
    horizons = -1 / mixer.log_decay(x)
    # Four heads, and alike in all their channels.
    wanted = torch.tensor([16.0, 64.0, 256.0, 1024.0]).view(4, *(1,) * (horizons.dim() - 3))
    torch.testing.assert_close(horizons, wanted.expand_as(horizons), atol=0, rtol=1e-4)


@pytest.mark.parametrize(("mixer_class", "config_class"), GATED)
def test_scratch_draws_the_papers_decays(mixer_class: Any, config_class: Any) -> None:
    mixer = seeded(mixer_class(config_class(), SITE), "scratch")
    assert bool(((mixer.A_log.exp() >= 1) & (mixer.A_log.exp() <= 16)).all())
    dt = F.softplus(mixer.dt_bias)
    assert bool(((dt >= 0.99e-3) & (dt <= 0.101)).all())
    assert bool((mixer.b_proj.bias == 0).all())


def test_the_rank_of_kdas_decay_is_the_key_width_unless_it_is_given() -> None:
    assert KdaMixer(KdaConfig(), SITE).f_proj_down.out_features == SITE.key_dim
    assert KdaMixer(KdaConfig(decay_rank=2), SITE).f_proj_down.out_features == 2


def test_a_doubled_strength_can_turn_the_sign_of_what_a_key_finds() -> None:
    mixers = [
        DeltaNetMixer(
            GatedDeltaNetConfig(negative_eigenvalues=doubled, conv_width=0, output_norm=False, gate=False), SITE
        )
        for doubled in (False, True)
    ]
    x = torch.randn(1, 1, SITE.hidden_size)
    found = []
    for mixer in mixers:
        seeded(mixer, "scratch")
        with torch.no_grad():
            mixer.b_proj.bias.fill_(20.0)
            mixer.v_proj.weight.zero_()
            before = torch.ones(1, SITE.num_heads, SITE.key_dim, SITE.value_dim)
            k = mixer.k_proj(x).view(SITE.num_key_value_heads, -1)
            k = F.normalize(k, dim=-1).repeat_interleave(2, 0)
            after = mixer(x, state={"delta": before})[1]["delta"]
        found.append(torch.einsum("nk,nkv->nv", k, after[0]) / torch.einsum("nk,nkv->nv", k, before[0]))
    # The value is 0: at strength 1 a key finds nothing any more, at 2 the opposite; eps makes keys a little short.
    torch.testing.assert_close(found[0], torch.zeros_like(found[0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1], -torch.ones_like(found[1]), atol=2e-3, rtol=0)


def test_the_decay_stays_fp32_in_a_bf16_model_and_keeps_its_exact_values() -> None:
    mixer = seeded(KdaMixer(KdaConfig(), SITE), "mimic")
    before = mixer.dt_bias.detach().clone()
    mixer.bfloat16()
    assert torch.equal(mixer.dt_bias, before)
    assert mixer.A_log.dtype == torch.float32
    assert mixer.f_proj_up.weight.dtype == torch.bfloat16
    y, state = mixer(torch.randn(1, 5, SITE.hidden_size).bfloat16())
    assert (y.dtype, state["delta"].dtype, state["conv"].dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("mixer_class", "config_class"), GATED)
def test_strong_decays_stay_finite(mixer_class: Any, config_class: Any) -> None:
    mixer = seeded(mixer_class(config_class(), SITE), "scratch")
    with torch.no_grad():
        mixer.A_log.fill_(8.0)
    x = torch.randn(2, 70, SITE.hidden_size, requires_grad=True)
    mixer(x)[0].square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in mixer.parameters())


def test_bf16_autocast_is_near_fp32_in_output_and_gradients() -> None:
    mixer = seeded(KdaMixer(KdaConfig(), SITE), "scratch")
    x = torch.randn(2, 100, SITE.hidden_size, generator=torch.Generator().manual_seed(1))
    results = []
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            y, state = mixer(x)
            gradients = torch.autograd.grad(y.float().square().sum(), list(mixer.parameters()))
            y = y.detach()
        assert state["delta"].dtype == torch.float32
        results.append([y, *gradients])
    for found, wanted in zip(results[1], results[0], strict=True):
        # bf16 carries 8 bits; projections, convolution, norms and products round a handful of times.
        assert float((found.float() - wanted).norm() / wanted.norm()) < 0.1


def test_the_kernels_are_described_before_anything_runs() -> None:
    mixer = KdaMixer(KdaConfig(), SITE)
    assert [line.split(":")[0] for line in mixer.describe_backends("cpu")] == ["delta on cpu", "conv on cpu"]
    with pytest.raises(BackendError, match="'fla' was asked for 'delta' on cpu"):
        KdaMixer(KdaConfig(backend="fla"), SITE).describe_backends("cpu")
