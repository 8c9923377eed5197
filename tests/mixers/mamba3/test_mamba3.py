"""Mamba-3: the kit, the published recurrence token by token, and where it starts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_mamba3.angles import CHUNK, sum_angles, turn
from linearize_mamba3.config import Mamba3Config
from linearize_mamba3.mixer import Mamba3Mixer
from linearize_mamba3.trapezoid import trapezoidal_recurrence
from torch import Tensor

from linearize.errors import PluginError
from linearize.mixing.rotary import RopeStyle, rotate
from linearize.ops.gated import gated_recurrence, ssd_recurrence
from linearize.testing import MixerConformance, SeederConformance
from linearize.testing.numbers import positions_of

SITE = MixerConformance.site
HEADS, GROUPS, K, V = 4, 2, 6, 5


def by_formula(mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """One row, token by token and head by head, as mamba_ssm 2.3 steps: the state sees two keys and values at once.

    Its step is selective_state_update_fused_ref_v2 behind apply_rotary_qk_inference_reference; channels are renamed so
    that pairs are (i, i + K/2).
    """
    config, outputs, history = mixer.config, [], []
    pairs = int(K * config.angle_fraction) // 2
    angles = torch.zeros(HEADS, pairs, dtype=x_TD.dtype)
    states = torch.zeros(HEADS, V, K, dtype=x_TD.dtype)
    last_k, last_v = torch.zeros(HEADS, K, dtype=x_TD.dtype), torch.zeros(GROUPS, V, dtype=x_TD.dtype)
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
        q, k = (
            y / (y.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * norm.weight
            for y, norm in ((q, mixer.q_norm), (k, mixer.k_norm))
        )
        q, k = q + mixer.q_norm.bias, k.repeat_interleave(HEADS // GROUPS, 0) + mixer.k_norm.bias
        if config.rope:
            here = position[0][:, t : t + 1], position[1][:, t : t + 1]
            q, k = (rotate(y[None, None], here, mixer.site.rope_style)[0, 0] for y in (q, k))
        dt = F.softplus(mixer.dt_proj(token) + mixer.dt_bias)
        a = torch.clamp(-F.softplus(mixer.A_proj(token)), max=-config.decay_floor)
        own = torch.sigmoid(mixer.trapezoid_proj(token))
        rate = torch.tanh(mixer.angle_proj(token))
        alpha = torch.exp(a * dt)
        beta, gamma = (1 - own) * dt * alpha, own * dt
        y_NV = []
        for head in range(HEADS):
            angles[head] = angles[head] + rate * dt[head] * math.pi
            q_now, k_now = (turned(y[head], angles[head], mixer.site.rope_style) for y in (q, k))
            group = head // (HEADS // GROUPS)
            states[head] = (
                states[head] * alpha[head]
                + beta[head] * torch.outer(last_v[group], last_k[head])
                + gamma[head] * torch.outer(v[group], k_now)
            )
            last_k[head] = k_now
            out = states[head] @ q_now
            if config.skip:
                out = out + mixer.D[head] * v[group]
            if config.output_norm:
                out = out / (out.square().mean() + config.norm_eps).sqrt() * mixer.g_norm.weight
            y_NV.append(out)
        last_v = v
        stacked = torch.stack(y_NV)
        outputs.append(stacked * F.silu(mixer.g_proj(token)).view(HEADS, V) if config.gate else stacked)
    return torch.stack(outputs)


def turned(x_K: Tensor, angles_P: Tensor, style: str = "half") -> Tensor:
    """Channels i and i + K/2, or neighbours, as one complex number, times exp(i angle)."""
    half = len(x_K) // 2
    found = x_K.clone()
    for pair, angle in enumerate(angles_P):
        one, other = (pair, pair + half) if style == "half" else (2 * pair, 2 * pair + 1)
        number = torch.complex(x_K[one], x_K[other]) * torch.exp(1j * angle)
        found[one], found[other] = number.real, number.imag
    return found


class TestMamba3(MixerConformance):
    name = "mamba3"
    options = (
        {},
        {"output_norm": False, "gate": False, "rope": False, "skip": False},
        {"angle_fraction": 1.0, "qkv_bias": True, "decay_floor": 0.5, "chunk_size": 7},
        {"conv_width": 3, "conv_activation": "silu", "angle_fraction": 0.4},
    )

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_formula(mixer, x_TD, position)


class TestMamba3WhereTheTeacherTurnsNeighbours(TestMamba3):
    site = replace(SITE, rope_style="interleaved")
    options = ({}, {"angle_fraction": 1.0, "output_norm": False, "gate": False})


class TestMimicOfMamba3(SeederConformance):
    name = "mimic"

    def mixer(self, site: Any) -> Mamba3Mixer:
        return Mamba3Mixer(Mamba3Config(qkv_bias=True), site)


def seeded(style: str = "mimic", **options: Any) -> Mamba3Mixer:
    mixer = Mamba3Mixer(Mamba3Config(**options), SITE)
    mixer.initialize(style, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return mixer


def moved(**options: Any) -> Mamba3Mixer:
    """In float64, with every parameter off its start."""
    mixer, generator = seeded("scratch", **options).double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return mixer


def draw(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("in_segments", [False, True])
@torch.no_grad()
def test_pads_in_the_middle_are_passed_over(in_segments: bool) -> None:
    mixer, x = moved(), draw(12)
    valid = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    # The second document begins with a pad, and ends with one.
    segments = torch.tensor([[3] * 8 + [1] * 4])
    packed = {"segments_BT": segments} if in_segments else {}
    y, state = mixer(x, valid_BT=valid, **packed)
    alone = {"segments_BT": segments[valid].unsqueeze(0)} if in_segments else {}
    y_alone, state_alone = mixer(x[valid].unsqueeze(0), **alone)
    torch.testing.assert_close(y[valid], y_alone[0])
    for name, tensor in state_alone.items():
        torch.testing.assert_close(state[name], tensor)


@torch.no_grad()
def test_a_document_of_pads_alone_leaves_nothing_to_the_next_token() -> None:
    mixer, x, then = moved(), draw(6), draw(1, seed=1)
    segments, valid = torch.tensor([[0] * 4 + [1] * 2]), torch.tensor([[True] * 4 + [False] * 2])
    _, state = mixer(x, valid_BT=valid, segments_BT=segments)
    torch.testing.assert_close(mixer(then, state=state)[0], mixer(then)[0])


@torch.no_grad()
def test_a_new_document_in_the_second_call_forgets_the_token_before_the_call() -> None:
    mixer, x, then = moved(), draw(5), draw(4, seed=1)
    _, state = mixer(x)
    y = mixer(then, state=state, segments_BT=torch.tensor([[7, 8, 8, 8]]))[0]
    torch.testing.assert_close(y[:, 1:], mixer(then[:, 1:])[0])
    torch.testing.assert_close(y[:, :1], mixer(then[:, :1], state=state)[0])


def test_a_token_that_writes_all_of_its_time_step_itself_is_mamba2s() -> None:
    q, k = torch.randn(2, 2, 9, HEADS, K, dtype=torch.float64)
    v, dt = torch.randn(2, 9, GROUPS, V, dtype=torch.float64), torch.rand(2, 9, HEADS, dtype=torch.float64)
    a = -torch.rand(HEADS, dtype=torch.float64)
    found, carried = trapezoidal_recurrence(
        gated_recurrence, q, k, v, dt * a, dt, torch.ones_like(dt), carried=None, valid_BT=None, segments_BT=None,
        chunk_size=4,
    )  # fmt: skip
    wanted, state = ssd_recurrence(q, k, v.repeat_interleave(HEADS // GROUPS, 2), dt, a)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(carried.state, state)


def test_angles_stay_exact_over_a_hundred_thousand_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    turns = 3 * torch.rand(1, 100_003, 1, 2, generator=generator)
    wanted = turns.double().cumsum(1)
    found, last = sum_angles(turns, None)
    # fp32 sums of 64 turns of up to 3: roundings of numbers up to 200. One fp32 sum over all tokens is off by 8e-3.
    assert float((found.double() - wanted).sin().abs().max()) < 3e-5
    assert float((last.double() - wanted[:, -1]).sin().abs().max()) < 3e-5
    assert float(found.max()) < 3 * CHUNK + 7


@torch.no_grad()
def test_angles_stay_exact_over_twenty_thousand_calls_of_one_token() -> None:
    turns = 3 * torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0))
    # To fp32 numbers around 6 such a turn adds nothing: it is below half their spacing.
    turns[0, 1], turns[1:, 1] = 6.0, 2e-7
    last, steps = None, []
    for turn_P in turns:
        found, last = sum_angles(turn_P.view(1, 1, 1, 2), last)
        steps.append(found.view(2))
    # fp64 sums, and two roundings to fp32 of numbers below 10. Handed on in fp32 they were off by 4e-3.
    assert float((torch.stack(steps).double() - turns.double().cumsum(0)).sin().abs().max()) < 2e-6


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_the_tokens_own_angles_and_the_teachers_rotary_embedding_are_one_rotation(style: RopeStyle) -> None:
    x = torch.randn(1, 5, HEADS, K, dtype=torch.float64)
    position = positions_of(list(range(5)), K, x)
    # The teacher's angles, from its cosines and sines.
    ropes = torch.atan2(position[1], position[0])[..., : K // 2].unsqueeze(2)
    angles = torch.rand(1, 5, HEADS, K // 2, dtype=torch.float64)
    torch.testing.assert_close(turn(rotate(x, position, style), angles, style), turn(x, angles + ropes, style))


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_queries_meet_keys_by_distance_as_in_the_teacher_while_their_own_angles_turn(style: RopeStyle) -> None:
    mixer = Mamba3Mixer(Mamba3Config(output_norm=False, gate=False), replace(SITE, rope_style=style))
    mixer.initialize("mimic", torch.Generator().manual_seed(0))
    mixer, generator = mixer.double(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        mixer.angle_proj.weight.copy_(torch.randn(mixer.angle_proj.weight.shape, generator=generator))
        for norm in (mixer.q_norm, mixer.k_norm):
            norm.bias.copy_(torch.randn(HEADS, K, generator=generator))
    x = draw(9)
    found = [
        mixer(x, position=positions_of(list(range(start, start + 9)), K, x))[0] for start in (0, 1000)
    ]  # fmt: skip
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=1e-7)


@torch.no_grad()
def test_mimic_starts_with_long_memories_half_a_trapezoid_and_no_rotation() -> None:
    mixer, x = seeded(), torch.randn(1, 3, 12)
    dt = F.softplus(mixer.dt_proj(x) + mixer.dt_bias)
    horizons = 1 / (dt * F.softplus(mixer.A_proj(x)))
    torch.testing.assert_close(horizons, torch.tensor([16.0, 64.0, 256.0, 1024.0]).expand(1, 3, -1), atol=0, rtol=1e-4)
    assert (mixer.trapezoid_proj(x).sigmoid() == 0.5).all()
    assert (mixer(x)[1]["angle"] == 0).all()
    assert (mixer.D == 0).all()
    assert all((norm.bias == 1).all() for norm in (mixer.q_norm, mixer.k_norm))


def test_scratch_starts_as_mamba_ssm_does() -> None:
    mixer = seeded("scratch")
    dt = F.softplus(mixer.dt_bias)
    assert bool(((dt >= 0.99e-3) & (dt <= 0.101)).all())
    assert (mixer.D == 1).all()
    assert all((norm.bias == 1).all() and (norm.weight == 1).all() for norm in (mixer.q_norm, mixer.k_norm))
    assert 0 < mixer.angle_proj.weight.abs().max() <= 12**-0.5


def test_the_decay_keeps_fp32_in_a_bf16_model_as_the_state_does_and_angles_fp64() -> None:
    mixer = seeded()
    before = mixer.dt_bias.detach().clone()
    mixer.bfloat16()
    assert torch.equal(mixer.dt_bias, before)
    y, state = mixer(torch.randn(1, 5, 12).bfloat16())
    assert y.dtype == torch.bfloat16
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "ssm": torch.float32, "angle": torch.float64, "last_key": torch.bfloat16, "last_value": torch.bfloat16,
    }  # fmt: skip


def test_bf16_autocast_is_near_fp32_in_output_and_gradients() -> None:
    mixer = seeded("scratch")
    x = draw(100, batch=2).float()
    results = []
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            y, state = mixer(x)
            gradients = torch.autograd.grad(y.float().square().sum(), list(mixer.parameters()))
        assert (state["ssm"].dtype, state["angle"].dtype) == (torch.float32, torch.float64)
        results.append([y.detach(), *gradients])
    for found, wanted in zip(results[1], results[0], strict=True):
        # bf16 carries 8 bits; projections, norms and products round a handful of times.
        assert float((found.float() - wanted).norm() / wanted.norm()) < 0.1


def test_strong_decays_stay_finite() -> None:
    mixer = seeded("scratch")
    with torch.no_grad():
        mixer.dt_bias.fill_(200.0)
    x = draw(70, batch=2).float().requires_grad_()
    mixer(x)[0].square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in mixer.parameters())


def test_a_share_without_a_pair_is_refused_with_the_share_that_would_do() -> None:
    with pytest.raises(PluginError, match=r"0.2 of the 6 channels .* site 1 is less than one pair; .* 0.333 in this"):
        Mamba3Mixer(Mamba3Config(angle_fraction=0.2), SITE)
