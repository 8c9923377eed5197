"""The sliding window and a feature map under one denominator, as LoLCATs has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linearize_sliding_window.combined import SwaLinearMixer
from linearize_sliding_window.config import SwaLinearConfig
from linearize_sliding_window.mixer import SlidingWindowMixer
from pydantic import ValidationError
from torch import Tensor

from linearize.errors import PluginError
from linearize.mixing.delay import delayed
from linearize.mixing.rotary import rotate
from linearize.plugin.specs import SeederSpec
from linearize.protocols import AttentionSite
from linearize.testing import MixerConformance, SeederConformance
from linearize.testing.mixer_inputs import attention_weights, installed_plugins
from linearize.testing.numbers import draw, positions_of

SITE = MixerConformance.site
HEDGEHOG = {"type": "feature_map", "conv_width": 0}


def build(site: AttentionSite = SITE, **options: Any) -> SwaLinearMixer:
    table = {"window": 6, "combine": "joint", "linear": HEDGEHOG, **options}
    return SwaLinearMixer(SwaLinearConfig.model_validate(table, context={"plugins": installed_plugins()}), site)


def heads_of(branch: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one row by the branch's own projections, without convolution: [T, N, ·], k and v per query head."""
    parts = [(branch.q_proj, SITE.key_dim), (branch.k_proj, SITE.key_dim), (branch.v_proj, SITE.value_dim)]
    q, k, v = (projection(x_TD).unflatten(-1, (-1, width)) for projection, width in parts)
    q, k = (rotate(x[None], position)[0] for x in (q, k))
    k, v = (x.repeat_interleave(SITE.num_heads // x.shape[1], 1) for x in (k, v))
    return q, k, v


def by_formula(mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """LoLCATs' equation, token by token and head by head; ``window`` tokens are the softmax's, all before the map's."""
    q, k, v = heads_of(mixer.window, x_TD, position)
    q_far, k_far, v_far = heads_of(mixer.linear, x_TD, position)
    k_once = k_far[:, :: SITE.num_heads // mixer.linear.num_key_value_heads]
    f_q = mixer.linear.q_map(q_far[None])[0]
    f_k = mixer.linear.k_map(k_once[None])[0].repeat_interleave(SITE.num_heads // k_once.shape[1], 1)
    outputs = []
    for t in range(len(x_TD)):
        first, heads = max(0, t - mixer.config.window + 1), []
        for head in range(SITE.num_heads):
            gate = torch.sigmoid(mixer.window_gate[head % len(mixer.window_gate)])
            scores = k[first : t + 1, head] @ q[t, head] * SITE.key_dim**-0.5
            near, far = gate * (scores - scores.max()).exp(), f_k[:first, head] @ f_q[t, head]
            values = torch.cat([near, far]) @ torch.cat([v[first : t + 1, head], v_far[:first, head]])
            heads.append(values / (near.sum() + far.sum()))
        outputs.append(torch.stack(heads))
    return torch.stack(outputs)


class TestJoint(MixerConformance):
    name = "swa_linear"
    options = (
        {"window": 6, "combine": "joint", "linear": HEDGEHOG},
        {"window": 20, "combine": "joint", "gates": "site", "linear": {**HEDGEHOG, "map": "elu", "qkv_bias": True}},
        {"window": 3, "combine": "joint", "linear": {**HEDGEHOG, "map": "t2r", "key_value_heads": "per_query"}},
    )

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_formula(mixer, x_TD, position)


class TestJointBehindAConvolution(MixerConformance):
    name = "swa_linear"
    options = ({"window": 6, "combine": "joint", "linear": {"type": "feature_map", "conv_width": 4}},)


class TestMimicSeedsJoint(SeederConformance):
    name = "mimic"

    def mixer(self, site: AttentionSite) -> SwaLinearMixer:
        return build(site, linear={**HEDGEHOG, "qkv_bias": True})


def seeded(window: int) -> tuple[SwaLinearMixer, Any]:
    mixer, weights = build(window=window), attention_weights(SITE, biases=False)
    spec = installed_plugins().registry.get(SeederSpec, "mimic")
    spec.builder()(spec.config_class()()).seed(weights, mixer, site=SITE, generator=torch.Generator())
    return mixer.double(), weights


def test_as_long_as_the_window_sees_everything_a_student_that_mimics_is_the_teacher() -> None:
    x, position = draw(2, 30, SITE.hidden_size, seed=0, dtype=torch.float64, device="cpu"), None
    position = positions_of(list(range(30)), SITE.key_dim, x)
    mixer, weights = seeded(window=30)
    window = SlidingWindowMixer(mixer.window.config, SITE).double()
    window.load_state_dict({f"{name}_proj.weight": getattr(weights, name).double() for name in "qkv"})
    torch.testing.assert_close(mixer(x, position=position)[0], window(x, position=position)[0])
    shorter, _ = seeded(window=29)
    near, far = (one(x, position=position)[0] for one in (mixer, shorter))
    assert torch.allclose(near[:, :29], far[:, :29])
    assert not torch.allclose(near[:, 29:], far[:, 29:])


def test_the_window_weighs_what_it_is_said_to_weigh_at_the_start() -> None:
    for style in ("mimic", "scratch"):
        mixer = build(window_start=0.1)
        mixer.initialize(style, torch.Generator().manual_seed(0))
        assert mixer.window_gate.sigmoid().tolist() == pytest.approx([0.1] * SITE.num_heads)
    assert mixer.roles()["window_gate"] == {"new", "mix"}
    assert build(gates="site").window_gate.shape == (1,)
    assert not hasattr(mixer, "linear_gate")


def test_scores_that_exp_cannot_hold_stay_finite() -> None:
    mixer = build()
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    x = 1e3 * draw(1, 20, SITE.hidden_size, seed=0, dtype=torch.float32, device="cpu").requires_grad_()
    y, _ = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in mixer.parameters())


@pytest.mark.parametrize(("linear", "told"), [
    ({"type": "gla"}, r"the linear mixer 'gla' has no such sum; set linear = \{ type = \"feature_map\" \}"),
    ({**HEDGEHOG, "gate": True}, "linear: mixer 'feature_map' has gate = true, but"),
    ({**HEDGEHOG, "output_norm": True, "normalizer": False}, "has output_norm = true and normalizer = false, but"),
])  # fmt: skip
def test_a_mixer_that_is_no_average_is_refused(linear: Any, told: str) -> None:
    with pytest.raises(PluginError, match=told):
        build(linear=linear)


@pytest.mark.parametrize(("options", "told"), [
    ({"sinks": 2, "window_dropout": 0.5}, "combine = 'joint' with sinks = 2 and window_dropout = 0.5: the linear"),
    ({"linear_start": 1.0}, "combine = 'joint' with linear_start = 1.0"),
    ({"combine": "sum", "window_start": 0.1}, "combine = 'sum' with window_start = 0.1: only combine = 'joint' has"),
])  # fmt: skip
def test_options_of_the_other_ways_to_combine_are_refused(options: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        build(**options)


@pytest.mark.parametrize("calls", [[100], [1, 40, 1, 58], [33, 67], [*[1] * 30, 70]])
def test_what_comes_out_of_a_window_passes_over_pads_and_stays_in_its_document(calls: list[int]) -> None:
    drawn = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    valid, document = drawn < 0.6, (drawn < 0.04).cumsum(1)
    x = torch.arange(200.0).view(2, 100, 1, 1)
    late, there, state, start = [], [], None, 0
    own = document.clone()
    for length in calls:
        at = slice(start, start + length)
        out, is_there, state = delayed(x[:, at], 7, valid_BT=valid[:, at], segments_BT=document[:, at], state=state)
        late.append(out[..., 0, 0])
        there.append(is_there)
        # Documents begin within calls alone: the first token of a call always goes on.
        own[:, start:] -= (own[:, start] - own[:, max(start - 1, 0)]).unsqueeze(1)
        start += length
    found, is_there = torch.cat(late, 1), torch.cat(there, 1)
    for row in range(2):
        for t in range(100):
            before = [s for s in range(t) if valid[row, s] and own[row, s] == own[row, t]]
            is_due = bool(valid[row, t]) and len(before) >= 7
            assert bool(is_there[row, t]) == is_due
            assert not is_due or found[row, t] == x[row, before[-7]]
