"""Linear attention with feature maps: the kit, the quadratic form pair by pair, and where it starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_feature_map.config import FeatureMapConfig
from linearize_feature_map.mixer import FeatureMapMixer
from pydantic import ValidationError
from torch import Tensor

from linearize.errors import BackendError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import SeederSpec
from linearize.protocols import SeedStyle
from linearize.testing import MixerConformance
from linearize.testing.mixer_inputs import attention_weights

SITE = MixerConformance.site
HEADS, GROUPS, K, V = 4, 2, 6, 5
BARE = {"conv_width": 0}
FRAMED = {"output_norm": True, "gate": True}


def features(mixer: Any, kind: str, x_K: Tensor, head: int) -> Tensor:
    """The features of one query ("q") or key ("k") of one head, by the papers' formulae."""
    if mixer.config.map == "elu":
        return torch.where(x_K > 0, x_K + 1, x_K.exp())
    layer = getattr(mixer, f"{kind}_map")
    weight = layer.weight[head]
    raw = sum(x_K[i] * weight[i] for i in range(K)) + layer.bias.view(-1, weight.shape[1])[head]
    if mixer.config.map == "t2r":
        return raw.clamp_min(0)
    return torch.cat([raw.exp() / raw.exp().sum(), (-raw).exp() / (-raw).exp().sum()])


def by_pairs(mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """One row: every weight of every pair of tokens, as attention would have them, and no state."""
    config = mixer.config
    raw = torch.stack([torch.cat([mixer.v_proj(x), mixer.k_proj(x), mixer.q_proj(x)]) for x in x_TD])
    if config.conv_width:
        before = F.pad(raw, (0, 0, config.conv_width - 1, 0))
        taps = range(config.conv_width)
        raw = mixer.conv1d.bias + sum(mixer.conv1d.weight[:, 0, i] * before[i : i + len(raw)] for i in taps)
        raw = F.silu(raw) if config.conv_activation == "silu" else raw
    groups = mixer.num_key_value_heads
    v, k, q = raw.split([groups * V, groups * K, HEADS * K], -1)
    v, k, q = v.view(-1, groups, V), k.view(-1, groups, K), q.view(-1, HEADS, K)
    if mixer.qk_norm == "rms":
        q, k = (F.rms_norm(x, (K,), norm.weight, config.norm_eps) for x, norm in ((q, mixer.q_norm), (k, mixer.k_norm)))
    if position is not None:
        q, k = (turn(x, *position) for x in (q, k))
    outputs = torch.zeros(len(x_TD), HEADS, V, dtype=x_TD.dtype)
    for head in range(HEADS):
        group = head // (HEADS // groups)
        from_q = [features(mixer, "q", x, head) for x in q[:, head]]
        from_k = [features(mixer, "k", x, group) for x in k[:, group]]
        for t in range(len(x_TD)):
            weights = torch.stack([from_q[t] @ from_k[s] for s in range(t + 1)])
            if config.normalizer:
                weights = weights / (weights.sum() + config.normalizer_eps)
            y = weights @ v[: t + 1, group]
            if config.output_norm:
                y = y / (y.square().mean() + config.norm_eps).sqrt() * mixer.g_norm.weight
            outputs[t, head] = y
    return outputs * F.silu(mixer.g_proj(x_TD)).view(-1, HEADS, V) if config.gate else outputs


def turn(x_THK: Tensor, cos_1TK: Tensor, sin_1TK: Tensor) -> Tensor:
    half = K // 2
    cos, sin = cos_1TK[0, :, None, :half], sin_1TK[0, :, None, :half]
    first, second = x_THK[..., :half], x_THK[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class TestFeatureMap(MixerConformance):
    """What every mixer keeps, with each map, with and without the normaliser."""

    name = "feature_map"
    options = (
        {},
        BARE,
        # 9 rows: differences cannot see a slope where some Wx + b is within their step of relu's kink, as with 8 rows.
        {**BARE, "map": "t2r", "feature_dim": 9, "qkv_bias": True},
        {**FRAMED, "map": "elu", "rope": False, "conv_width": 4, "conv_activation": "silu"},
        {
            **FRAMED,
            "feature_dim": 3,
            "normalizer": False,
            "qk_norm": "rms",
            "chunk_size": 7,
            "key_value_heads": "per_query",
        },
    )

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_pairs(mixer, x_TD, position if mixer.rope else None)


def build(style: SeedStyle = "scratch", **options: Any) -> FeatureMapMixer:
    mixer = FeatureMapMixer(FeatureMapConfig.model_validate({**BARE, **options}), SITE)
    mixer.initialize("scratch", torch.Generator().manual_seed(1))
    mixer.initialize(style, torch.Generator().manual_seed(0))
    return mixer


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(length), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("name", ["hedgehog", "t2r", "elu"])
def test_every_gradient_is_that_of_the_quadratic_form(name: str) -> None:
    mixer, x = build(map=name, chunk_size=16).double(), inputs(37).requires_grad_()
    leaves, toward = [x, *mixer.parameters()], inputs(37)[..., :HEADS].unsqueeze(-1)
    by_state = torch.autograd.grad((mixer(x)[0] * toward).sum(), leaves)
    rows = torch.stack([by_pairs(mixer, row) for row in x])
    by_hand = torch.autograd.grad((rows * toward).sum(), leaves)
    for found, wanted in zip(by_state, by_hand, strict=True):
        # float64 on both sides, sums over 37 tokens in another order.
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", ["hedgehog", "elu"])
def test_an_output_is_an_average_of_values(name: str) -> None:
    mixer = build(map=name, normalizer_eps=1e-12).double()
    with torch.no_grad():
        mixer.v_proj.weight.zero_()
    mixer.v_proj.bias = torch.nn.Parameter(torch.arange(GROUPS * V, dtype=torch.float64))
    mixer.k_proj.bias, mixer.q_proj.bias = (
        torch.nn.Parameter(torch.zeros(width, dtype=torch.float64)) for width in (GROUPS * K, HEADS * K)
    )
    wanted = torch.arange(GROUPS * V, dtype=torch.float64).view(GROUPS, V).repeat_interleave(2, 0)
    # All values are alike, so that every average is that value; eps is 1e-12 of weights of about 1.
    torch.testing.assert_close(mixer(inputs(70))[0], wanted.expand(2, 70, -1, -1), atol=0, rtol=1e-9)


def test_the_weights_add_up_to_one_in_bf16_after_thousands_of_tokens() -> None:
    mixer = build("mimic", conv_width=0, qkv_bias=True).bfloat16()
    with torch.no_grad():
        mixer.v_proj.weight.zero_()
        mixer.v_proj.bias.fill_(1.0)
        y, state = mixer(inputs(5000, batch=1, dtype=torch.bfloat16))
    assert state["memory"].dtype == torch.float32
    # Numerator and denominator are sums of the same rounded features in fp32; each is rounded once to 8 bits, the
    # quotient once more. A sum kept in bf16 would stop growing after some 256 tokens.
    assert float((y.float() - 1).abs().max()) <= 2**-7


def test_the_normaliser_is_carried_in_the_state_and_is_the_sum_of_the_keys_features() -> None:
    mixer, x = build().double(), inputs(9)
    _, state = mixer(x)
    assert set(state) == {"memory"}
    assert state["memory"].shape == (2, HEADS, 2 * K, V + 1)
    keys = mixer.k_map(mixer.k_proj(x).view(2, 9, GROUPS, K)).sum(1).repeat_interleave(2, 1)
    torch.testing.assert_close(state["memory"][..., -1], keys, atol=1e-12, rtol=1e-12)
    assert build(normalizer=False).double()(x)[1]["memory"].shape == (2, HEADS, 2 * K, V)


def test_a_query_that_meets_no_key_gives_zero_and_finite_gradients() -> None:
    mixer, x = build(map="t2r"), inputs(20, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        mixer.k_map.bias.fill_(-1e4)
    y, _ = mixer(x)
    assert (y == 0).all()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_features_of_large_inputs_stay_finite() -> None:
    for name in ("hedgehog", "t2r", "elu"):
        mixer, x = build(map=name), (1e3 * inputs(70, dtype=torch.float32)).requires_grad_()
        y, _ = mixer(x)
        y.square().sum().backward()
        assert y.isfinite().all(), name
        assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters()), name


def test_a_mimicking_map_starts_as_the_identity_and_draws_what_lies_beyond_it() -> None:
    for rows in (3, 6, 8):
        mixer = build("mimic", map="t2r", feature_dim=rows)
        for layer in (mixer.q_map, mixer.k_map):
            assert (layer.bias == 0).all()
            for head in layer.weight:
                assert torch.equal(head[:, :K], torch.eye(K)[:, :rows])
                assert rows <= K or bool((head[:, K:] != 0).all())
    x = torch.randn(2, 3, HEADS, K)
    torch.testing.assert_close(build("mimic", map="t2r").q_map(x), x.relu())


def test_scratch_draws_the_maps_from_pytorchs_range() -> None:
    mixer = build("scratch", feature_dim=64)
    for parameter in mixer.q_map.parameters():
        assert 0.9 * K**-0.5 < float(parameter.detach().abs().max()) <= K**-0.5


def test_maps_are_one_per_query_head_and_one_per_key_head_and_are_trained_as_a_role() -> None:
    mixer = build(feature_dim=3)
    shapes = {name: tuple(p.shape) for name, p in mixer.named_parameters() if "map" in name}
    assert shapes == {
        "q_map.weight": (HEADS, K, 3), "q_map.bias": (HEADS * 3,),
        "k_map.weight": (GROUPS, K, 3), "k_map.bias": (GROUPS * 3,),
    }  # fmt: skip
    roles = mixer.roles()
    assert all(roles[name] == {"new", "feature_map"} for name in shapes)
    assert not any("map" in name for name, _ in build(map="elu").named_parameters())


def test_mimic_copies_q_k_and_v_and_derives_the_maps() -> None:
    registry = Plugins.discover().registry
    weights = attention_weights(SITE, biases=True, norms=True)
    mixer = FeatureMapMixer(FeatureMapConfig(qkv_bias=True), SITE)
    seeder = registry.get(SeederSpec, "mimic")
    report = seeder.builder()(seeder.config_class()()).seed(
        weights, mixer, site=SITE, generator=torch.Generator().manual_seed(0)
    )
    assert {name for name, account in report.parameters.items() if account == "copied"} == {
        f"{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")
    }
    assert report.parameters["q_map.weight"] == report.parameters["k_map.bias"] == "derived"
    assert torch.equal(mixer.k_proj.weight, weights.k)
    assert report.teacher["o"] == "kept"
    assert report.teacher["q_norm"] == "dropped"


def test_the_maps_see_turned_queries_and_keys() -> None:
    mixer, x = build().double(), inputs(9)
    angle = torch.linspace(0, 3, 9 * 3, dtype=torch.float64).view(1, 9, 3).repeat(1, 1, 2)
    position = (angle.cos(), angle.sin())
    # float64 on both sides; only the order of sums differs.
    torch.testing.assert_close(mixer(x, position=position)[0][0], by_pairs(mixer, x[0], position), atol=1e-12, rtol=0)
    unturned = build(rope=False).double()
    assert torch.equal(unturned(x, position=position)[0], unturned(x)[0])


def test_bf16_autocast_is_near_fp32_in_output_and_gradients() -> None:
    mixer, x = build(conv_width=2, **FRAMED), inputs(100, dtype=torch.float32)
    results, toward = [], torch.randn(2, 100, HEADS, V, generator=torch.Generator().manual_seed(0))
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            y, state = mixer(x)
            gradients = torch.autograd.grad((y.float() * toward).sum(), list(mixer.parameters()))
        assert state["memory"].dtype == torch.float32
        # All gradients as one vector: a bias of hedgehog's maps hardly matters to normalised weights, and its gradient
        # is a difference of larger numbers.
        results.append([y.detach().float(), torch.cat([gradient.float().flatten() for gradient in gradients])])
    for found, wanted in zip(results[1], results[0], strict=True):
        # bf16 carries 8 bits; projections, convolution, maps and products round a handful of times.
        assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_elu_has_no_width_to_set() -> None:
    with pytest.raises(ValidationError, match=r"feature_dim = 8 with map = 'elu', which has no matrix"):
        FeatureMapConfig(map="elu", feature_dim=8)


def test_the_kernels_are_described_before_anything_runs() -> None:
    assert [line.split(":")[0] for line in build(conv_width=2).describe_backends("cpu")] == [
        "gated on cpu",
        "conv on cpu",
    ]
    with pytest.raises(BackendError, match="'fla' was asked for 'gated' on cpu"):
        build(backend="fla").describe_backends("cpu")
