"""The Mamba-2 mixer keeps the promises of linearize.protocols.Mixer, with every option on and off."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_mamba2.config import Mamba2Config
from linearize_mamba2.mixer import Mamba2Mixer
from pydantic import ValidationError

from linearize.errors import BackendError
from linearize.protocols import AttentionSite
from linearize.testing import MixerConformance

SITE = AttentionSite(
    index=3, path="layers.3.attention", tower="language", layer=3, cache_index=3, hidden_size=12,
    num_heads=4, num_key_value_heads=2, key_dim=4, value_dim=6,
)  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {},
    {"conv_width": 0},
    {"conv_width": 4, "conv_activation": "identity"},
    {"qk_norm": True, "skip": True, "qkv_bias": True, "key_value_heads": "per_query"},
    {"rope": True, "qk_norm": True},
    {"output_norm": False},
    {"gate": False},
    {"output_norm": False, "gate": False},
    {"dt_scales_input": False},
    {"chunk_size": 5},
]


def build(style: str = "scratch", seed: int = 0, **options: Any) -> Mamba2Mixer:
    mixer = Mamba2Mixer(Mamba2Config(**options), SITE)
    mixer.initialize(style, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    # Initial values hide parts of the formula (zeros, ones), so every parameter moves.
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return mixer.double()


def inputs(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def by_formula(
    mixer: Mamba2Mixer, x: torch.Tensor, position: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """One row, token by token, written from the paper's formulae; with ``position`` q and k are turned."""
    config, outputs = mixer.config, []
    heads, groups = SITE.num_heads, mixer.num_key_value_heads
    history = []
    state = torch.zeros(heads, SITE.key_dim, SITE.value_dim, dtype=torch.float64)
    for t, token in enumerate(x):
        u = torch.cat([mixer.v_proj(token), mixer.k_proj(token), mixer.q_proj(token)])
        history.append(u)
        if config.conv_width:
            total = mixer.conv1d.bias.clone()  # type: ignore[union-attr]
            for back, past in enumerate(reversed(history[-config.conv_width :])):
                total = total + mixer.conv1d.weight[:, 0, config.conv_width - 1 - back] * past
            u = F.silu(total) if config.conv_activation == "silu" else total
        v, k, q = u.split([groups * SITE.value_dim, groups * SITE.key_dim, heads * SITE.key_dim])
        v, k, q = v.view(groups, -1), k.view(groups, -1), q.view(heads, -1)
        if config.qk_norm:
            q, k = mixer.q_norm(q), mixer.k_norm(k)
        if position is not None:
            q, k = (turn(heads, position[0][0, t], position[1][0, t]) for heads in (q, k))
        dt = F.softplus(mixer.in_proj(token) + mixer.dt_bias)
        decay = torch.exp(-dt * mixer.A_log.exp())
        y = []
        for head in range(heads):
            group = head // (heads // groups)
            write = dt[head] if config.dt_scales_input else 1.0
            state[head] = decay[head] * state[head] + write * torch.outer(k[group], v[group])
            out = q[head] @ state[head]
            if config.skip:
                out = out + mixer.D[head] * v[group]
            if config.output_norm:
                out = out / (out.square().mean() + config.norm_eps).sqrt() * mixer.g_norm.weight
            y.append(out)
        stacked = torch.stack(y)
        if config.gate:
            stacked = stacked * F.silu(mixer.g_proj(token)).view(heads, -1)
        outputs.append(stacked)
    return torch.stack(outputs)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[:, half:], x[:, :half]], -1) * sin


class TestMamba2(MixerConformance):
    """What every mixer keeps, and the paper's formulae."""

    name = "mamba2"
    options = OPTIONS
    site = SITE

    def reference(self, mixer: Any, x_TD: torch.Tensor, position: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return by_formula(mixer, x_TD, position if mixer.rope else None)


@pytest.mark.parametrize("options", OPTIONS)
def test_roles_name_every_parameter_and_give_it_one_side(options: dict[str, Any]) -> None:
    mixer = Mamba2Mixer(Mamba2Config(**options), SITE)
    roles = mixer.roles()
    assert set(roles) == {name for name, _ in mixer.named_parameters()}
    for name, found in roles.items():
        assert len(found & {"qkv", "new"}) == 1, name
        assert ("qkv" in found) == (name.split(".")[0] in mixer.projections.values()), name


@pytest.mark.parametrize("style", ["mimic", "scratch"])
@pytest.mark.parametrize("options", OPTIONS)
def test_initialize_sets_every_new_parameter_from_the_generator_alone(style: str, options: dict[str, Any]) -> None:
    mixers = []
    for fill in (float("nan"), 3.0):
        mixer = Mamba2Mixer(Mamba2Config(**options), SITE)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.fill_(fill)
        mixer.initialize(style, torch.Generator().manual_seed(5))  # type: ignore[arg-type]
        mixers.append(dict(mixer.named_parameters()))
    for name, role in Mamba2Mixer(Mamba2Config(**options), SITE).roles().items():
        if "new" in role or style == "scratch":
            assert torch.equal(mixers[0][name], mixers[1][name]), name
        else:
            assert (mixers[1][name] == 3.0).all(), f"mimic changed {name}"


def test_mimic_starts_as_mmmamba_does() -> None:
    mixer = Mamba2Mixer(Mamba2Config(), SITE)
    mixer.initialize("mimic", torch.Generator().manual_seed(0))
    taps = mixer.conv1d.weight[:, 0]
    assert (taps[:, 0] == 0).all()
    assert (taps[:, 1] == 1).all()
    assert (mixer.conv1d.bias == 0).all()
    assert (mixer.in_proj.weight == 0).all()
    assert (mixer.A_log == 1).all()
    dt = F.softplus(mixer.dt_bias)
    assert ((dt >= 0.99e-3) & (dt <= 0.101)).all()
    assert len(dt.unique()) == SITE.num_heads
    bound = 2**-2.5 * math.sqrt(6 / (12 + SITE.num_heads * SITE.value_dim))
    assert 0.5 * bound < mixer.g_proj.weight.abs().max() <= bound


def test_scratch_draws_the_decay_between_one_and_sixteen() -> None:
    mixer = Mamba2Mixer(Mamba2Config(), SITE)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    assert ((mixer.A_log.exp() >= 1) & (mixer.A_log.exp() <= 16)).all()
    assert (mixer.dt_bias == 0).all()
    assert mixer.q_proj.weight.abs().max() <= 12**-0.5


def test_the_decay_stays_fp32_in_a_bf16_model_and_keeps_its_exact_values() -> None:
    mixer = Mamba2Mixer(Mamba2Config(), SITE)
    mixer.initialize("mimic", torch.Generator().manual_seed(0))
    before = mixer.dt_bias.detach().clone()
    mixer.bfloat16()
    assert mixer.A_log.dtype == torch.float32
    assert torch.equal(mixer.dt_bias, before)
    assert mixer.q_proj.weight.dtype == torch.bfloat16
    y, state = mixer(torch.randn(1, 5, 12).bfloat16())
    assert y.dtype == torch.bfloat16
    assert (state["ssm"].dtype, state["conv"].dtype) == (torch.float32, torch.bfloat16)


def test_bf16_autocast_is_near_fp32() -> None:
    mixer = build().float()
    x = inputs(40).float()
    with torch.no_grad():
        wanted, _ = mixer(x)
        with torch.autocast("cpu", torch.bfloat16):
            found, state = mixer(x)
    assert state["ssm"].dtype == torch.float32
    # bf16 carries 8 bits; projections, convolution and products round a handful of times.
    assert (found.float() - wanted).norm() / wanted.norm() < 0.03


def test_strong_decays_stay_finite() -> None:
    mixer = build().float()
    with torch.no_grad():
        mixer.A_log.fill_(8.0)
    x = inputs(70).float().requires_grad_()
    mixer(x)[0].square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_one_tap_is_refused() -> None:
    with pytest.raises(ValidationError, match="one tap mixes nothing"):
        Mamba2Config(conv_width=1)


def test_the_kernels_are_described_before_anything_runs() -> None:
    assert [line.split(":")[0] for line in build().describe_backends("cpu")] == ["ssd on cpu", "conv on cpu"]
    assert len(build(conv_width=0).describe_backends("cpu")) == 1
    with pytest.raises(BackendError, match="CUDA device"):
        build(backend="fla").describe_backends("cpu")


def test_mamba_ssm_cannot_write_without_dt() -> None:
    mixer = build(dt_scales_input=False, backend="mamba_ssm")
    with pytest.raises(BackendError, match="does not compute 'gated'"):
        mixer(inputs(3))
