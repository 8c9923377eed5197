"""The gated mixers keep the kit's promises, and compute their papers' formulae."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_gated.config import GlaConfig, Hgrn2Config, LightningConfig, RetnetConfig, SimpleGlaConfig
from linearize_gated.fixed import Lightning, Retnet
from linearize_gated.gla import Gla
from linearize_gated.hgrn2 import Hgrn2
from linearize_gated.simple_gla import SimpleGla
from torch import Tensor
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from linearize.errors import PluginError
from linearize.mixing.rotary import rotate
from linearize.testing import MixerConformance

SITE = MixerConformance.site
HEADS, K, V = 4, 6, 5
BARE = {"conv_width": 0, "output_norm": False, "gate": False, "rope": False}


class GatedConformance(MixerConformance):
    """The kit, with one reference for the whole family: token by token and head by head, from the page."""

    def decays(self, mixer: Any, x_TD: Tensor, k_TMK: Tensor) -> Tensor:
        """What each head keeps, [T, N, K] or [T, N, 1]."""
        raise NotImplementedError

    def keys(self, mixer: Any, k_TMK: Tensor) -> Tensor:
        return k_TMK

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = projected(mixer, x_TD)
        if mixer.rope:
            q, k = (rotate(heads.unsqueeze(0), position)[0] for heads in (q, k))
        keep, k = self.decays(mixer, x_TD, k), self.keys(mixer, k)
        state, outputs = torch.zeros(HEADS, K, V, dtype=x_TD.dtype), []
        for t in range(len(x_TD)):
            heads = []
            for head in range(HEADS):
                group = head // (HEADS // mixer.num_key_value_heads)
                state[head] = keep[t, head].unsqueeze(-1) * state[head] + torch.outer(k[t, group], v[t, group])
                y = q[t, head] @ state[head] / K**0.5
                if mixer.config.output_norm:
                    y = y / (y.square().mean() + mixer.config.norm_eps).sqrt() * mixer.g_norm.weight
                heads.append(y)
            y_NV = torch.stack(heads)
            outputs.append(y_NV * F.silu(mixer.g_proj(x_TD[t])).view(HEADS, V) if mixer.config.gate else y_NV)
        return torch.stack(outputs)


def projected(mixer: Any, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v by heads, after convolution and norm."""
    raw = torch.cat([mixer.v_proj(x_TD), mixer.k_proj(x_TD), mixer.q_proj(x_TD)], -1)
    if mixer.config.conv_width:
        width = mixer.config.conv_width
        padded = F.pad(raw, (0, 0, width - 1, 0))
        raw = mixer.conv1d.bias + sum(
            mixer.conv1d.weight[:, 0, tap] * padded[tap : tap + len(raw)] for tap in range(width)
        )
        raw = F.silu(raw) if mixer.config.conv_activation == "silu" else raw
    groups = mixer.num_key_value_heads
    v, k, q = raw.split([groups * V, groups * K, HEADS * K], -1)
    q, k, v = q.unflatten(-1, (HEADS, K)), k.unflatten(-1, (groups, K)), v.unflatten(-1, (groups, V))
    if mixer.qk_norm == "rms":
        q, k = (F.rms_norm(t, (K,), norm.weight, 1e-5) for t, norm in ((q, mixer.q_norm), (k, mixer.k_norm)))
    if mixer.qk_norm == "l2":
        q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-5).sqrt() for t in (q, k))
    return q, k, v


class TestSimpleGla(GatedConformance):
    name = "simple_gla"
    options = (
        {},
        BARE,
        {
            "qk_norm": "rms",
            "qkv_bias": True,
            "conv_width": 4,
            "conv_activation": "silu",
            "key_value_heads": "per_query",
        },
        {"decay_normalizer": 1.0},
    )

    def decays(self, mixer: Any, x_TD: Tensor, k_TMK: Tensor) -> Tensor:
        keep = torch.sigmoid(x_TD @ mixer.decay_proj.weight.T + mixer.decay_bias) ** (1 / mixer.config.decay_normalizer)
        return keep.unsqueeze(-1)


class TestRetnet(GatedConformance):
    name = "retnet"
    options = (
        {},
        BARE,
        {"qk_norm": "l2", "conv_activation": "silu"},
        {"first_exponent": 2.0, "exponent_step": 0.5, "key_value_heads": "per_query"},
    )

    def decays(self, mixer: Any, x_TD: Tensor, k_TMK: Tensor) -> Tensor:
        first, step = mixer.config.first_exponent, mixer.config.exponent_step
        keep = torch.tensor([1 - 2.0 ** -(first + head * step) for head in range(HEADS)], dtype=x_TD.dtype)
        return keep.view(1, HEADS, 1).expand(len(x_TD), -1, -1)


class TestLightning(GatedConformance):
    name = "lightning"
    options = ({}, BARE)

    def decays(self, mixer: Any, x_TD: Tensor, k_TMK: Tensor) -> Tensor:
        slopes = [2.0 ** (-8 * (head + 1) / HEADS) * (1 - 1 / (3 + 1e-5) + 1e-5) for head in range(HEADS)]
        keep = torch.tensor(slopes, dtype=x_TD.dtype).neg().exp()
        return keep.view(1, HEADS, 1).expand(len(x_TD), -1, -1)


class TestGla(GatedConformance):
    name = "gla"
    options = ({}, BARE, {"qk_norm": "l2", "decay_rank": 3, "chunk_size": 7, "key_value_heads": "per_query"})

    def decays(self, mixer: Any, x_TD: Tensor, k_TMK: Tensor) -> Tensor:
        raw = x_TD @ mixer.decay_down.weight.T @ mixer.decay_up.weight.T + mixer.decay_bias
        return (torch.sigmoid(raw) ** (1 / mixer.config.decay_normalizer)).view(-1, HEADS, K)


class TestHgrn2(GatedConformance):
    name = "hgrn2"
    options = (
        {},
        {"conv_width": 0, "output_norm": False, "gate": False},
        {"conv_activation": "silu", "chunk_size": 7, "key_value_heads": "per_query"},
    )

    def keys(self, mixer: Any, k_TMK: Tensor) -> Tensor:
        return (1 - torch.sigmoid(mixer.keep_bound)).unsqueeze(-1) * torch.sigmoid(k_TMK)

    def decays(self, mixer: Any, x_TD: Tensor, k_TMK: Tensor) -> Tensor:
        return (1 - self.keys(mixer, k_TMK)).repeat_interleave(HEADS // mixer.num_key_value_heads, 1)


@pytest.mark.parametrize("layer", range(4))
def test_lightning_decays_are_those_that_transformers_has_for_minimax(layer: int) -> None:
    minimax = SimpleNamespace(num_attention_heads=HEADS, layer_idx=layer, num_hidden_layers=4)
    slopes = MiniMaxLightningAttention.get_slope_rate(minimax).flatten()  # type: ignore[arg-type]
    mixer = Lightning(LightningConfig(), replace(SITE, layer=layer))
    # Both compute in fp32, where 1 - share is exact to a few roundings of 1.
    torch.testing.assert_close(mixer.log_decay(torch.zeros(1, 1, 12)).flatten(), -slopes, atol=2e-7, rtol=1e-6)


def test_lightning_needs_the_number_of_layers_and_says_who_has_to_give_it() -> None:
    with pytest.raises(PluginError, match=r"layer 1 of 0 in tower 'language'; the teacher's adapter has to set"):
        Lightning(LightningConfig(), replace(SITE, num_layers=0))


def test_retention_decays_are_the_papers() -> None:
    keep = Retnet(RetnetConfig(), SITE).log_decay(torch.zeros(1, 1, 12)).exp().flatten()
    torch.testing.assert_close(keep, torch.tensor([31 / 32, 63 / 64, 127 / 128, 255 / 256]))


def test_many_heads_get_no_decay_that_is_infinite_or_exactly_one_in_float32() -> None:
    g = Retnet(RetnetConfig(), replace(SITE, num_heads=32)).log_decay(torch.zeros(1, 1, 12, dtype=torch.bfloat16))
    assert g.dtype == torch.float32
    assert g.isfinite().all()
    assert (g < 0).all()


def test_a_mimicking_gate_starts_with_horizons_from_16_to_1024_tokens_whatever_the_input() -> None:
    mixer = SimpleGla(SimpleGlaConfig(), SITE)
    mixer.initialize("mimic", torch.Generator().manual_seed(0))
    keep = mixer.log_decay(torch.randn(2, 3, 12)).exp()
    wanted = 1 - 1 / torch.tensor([16.0, 64.0, 256.0, 1024.0])
    # fp32: the gate's bias is a logit, whose rounding shows in the sixth digit.
    torch.testing.assert_close(keep, wanted.expand(2, 3, -1), atol=1e-6, rtol=0)


def test_a_mimicking_gla_starts_with_one_decay_for_all_channels_of_a_head() -> None:
    mixer = Gla(GlaConfig(), SITE)
    mixer.initialize("mimic", torch.Generator().manual_seed(0))
    keep = mixer.log_decay(torch.randn(2, 3, 12)).exp()
    wanted = 1 - 1 / torch.tensor([16.0, 64.0, 256.0, 1024.0])
    torch.testing.assert_close(keep, wanted.view(1, 1, HEADS, 1).expand(2, 3, -1, K), atol=1e-6, rtol=0)


def test_hgrn2_keeps_finite_gradients_where_a_key_overwrites_everything() -> None:
    mixer = Hgrn2(Hgrn2Config(conv_width=0), SITE)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixer.keep_bound.fill_(-60.0)
    x = (300 * torch.randn(1, 70, 12)).requires_grad_()
    y, _ = mixer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_fixed_decays_add_no_parameter() -> None:
    names = {name for name, _ in Retnet(RetnetConfig.model_validate(BARE), SITE).named_parameters()}
    assert names == {"q_proj.weight", "k_proj.weight", "v_proj.weight"}
