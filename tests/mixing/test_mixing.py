"""The parts that mixers share; the mixer here is plain linear attention, whose quadratic form is easy to write."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as turn_neighbours
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from linearize.errors import PluginError
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.norms import norm_and_gate, unit_length
from linearize.mixing.options import LinearMixerOptions
from linearize.mixing.rotary import RopeStyle, rotate
from linearize.protocols import AttentionSite, State

SITE = AttentionSite(
    index=0, path="layers.0.attention", tower="language", layer=0, cache_index=0, hidden_size=12,
    num_heads=4, num_key_value_heads=2, key_dim=6, value_dim=5,
)  # fmt: skip


class PlainLinearAttention(LinearMixer):
    """S_t = S_{t-1} + k_t v_tᵀ, with a constant of each role that a mixer may add."""

    own_roles: ClassVar = {"decay": "decay", "scale": "scale", "decay_proj": "decay"}

    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(
            config, site, operation="gated", backend=config.backend, qk_norm=config.qk_norm, rope=config.rope
        )

    def add_parameters(self) -> None:
        self.decay = nn.Parameter(torch.zeros(self.site.num_heads))
        self.scale = nn.Parameter(torch.ones(self.site.num_heads))
        self.decay_proj = nn.Linear(self.site.hidden_size, self.site.num_heads)

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        return {"memory": self.empty_memory(batch_size, device=device, dtype=dtype)}

    def recur(
        self,
        x_BTD: Tensor,
        q_BTNK: Tensor,
        k_BTMK: Tensor,
        v_BTMV: Tensor,
        *,
        valid_BT: Tensor | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        kernel = self.recurrence(x_BTD.device).kernel
        g_BTN = torch.zeros(q_BTNK.shape[:3])
        y_BTNV, memory = kernel(q_BTNK, k_BTMK, v_BTMV, g_BTN, state_BNKV=None if state is None else state["memory"])
        return y_BTNV, {"memory": memory}


def build(**options: Any) -> PlainLinearAttention:
    torch.manual_seed(0)
    return PlainLinearAttention(LinearMixerOptions.model_validate(options), SITE).double()


def angles(length: int, width: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(1, length, width // 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def test_rotation_is_that_of_transformers() -> None:
    x, (cos, sin) = torch.randn(2, 7, 4, 6, dtype=torch.float64), angles(7, 6)
    wanted, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    torch.testing.assert_close(rotate(x, (cos, sin)), wanted.transpose(1, 2), atol=0, rtol=0)


def test_a_partial_rotary_embedding_leaves_the_rest_of_each_head_alone() -> None:
    x, position = torch.randn(2, 7, 4, 6, dtype=torch.float64), angles(7, 4)
    turned = rotate(x, position)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], rotate(x[..., :4], position))


def test_neighbours_turn_as_in_transformers_however_their_angles_are_passed() -> None:
    x, (cos, sin) = torch.randn(2, 7, 4, 6, dtype=torch.float64), angles(7, 6)
    paired = tuple(part[..., :3].repeat_interleave(2, -1) for part in (cos, sin))
    wanted = turn_neighbours(x.transpose(1, 2), x.transpose(1, 2), *paired)[0].transpose(1, 2)
    # Cohere computes this in float32 whatever it is given.
    torch.testing.assert_close(rotate(x, (paired[0], paired[1]), "interleaved"), wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(rotate(x, (cos, sin), "interleaved"), rotate(x, (paired[0], paired[1]), "interleaved"))
    partial = rotate(x, (cos[..., [0, 1, 0, 1]], sin[..., [0, 1, 0, 1]]), "interleaved")
    assert torch.equal(partial[..., 4:], x[..., 4:])


def test_a_rotary_embedding_of_another_kind_is_refused_with_its_shape() -> None:
    x = torch.randn(2, 7, 4, 6)
    with pytest.raises(ValueError, match=r"cos has shape \(1, 7, 8\).*an even number up to 6"):
        rotate(x, angles(7, 8))
    with pytest.raises(ValueError, match=r"cos has shape \(1, 5, 6\).*\(2 or 1, 7,"):
        rotate(x, angles(5, 6))
    with pytest.raises(ValueError, match="got a Tensor as its rotary embedding"):
        rotate(x, torch.zeros(1, 7, 3, dtype=torch.complex64))  # type: ignore[arg-type]


def by_attention(mixer: PlainLinearAttention, x_TD: Tensor, position: tuple[Tensor, Tensor] | None) -> Tensor:
    """The masked quadratic form of one row, without convolution, norm and gate; a head at a time."""
    heads = []
    for head in range(SITE.num_heads):
        group = head // 2
        q = mixer.q_proj(x_TD)[:, head * 6 : (head + 1) * 6]
        k = mixer.k_proj(x_TD)[:, group * 6 : (group + 1) * 6]
        v = mixer.v_proj(x_TD)[:, group * 5 : (group + 1) * 5]
        if mixer.qk_norm == "rms":
            q, k = (F.rms_norm(t, (6,), norm.weight, 1e-5) for t, norm in ((q, mixer.q_norm), (k, mixer.k_norm)))
        if mixer.qk_norm == "l2":
            q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-5).sqrt() for t in (q, k))
        if position is not None:
            q, k = (t[:, 0] for t in map(lambda t: rotate(t.view(1, -1, 1, 6), position)[0], (q, k)))
        heads.append((q @ k.T).tril() @ v)
    return torch.stack(heads, 1)


@pytest.mark.parametrize("qk_norm", ["none", "rms", "l2"])
@pytest.mark.parametrize("rope", [True, False])
def test_heads_share_keys_and_values_and_q_and_k_are_normed_and_then_turned(qk_norm: str, rope: bool) -> None:
    mixer = build(conv_width=0, output_norm=False, gate=False, qkv_bias=True, qk_norm=qk_norm, rope=rope)
    if qk_norm == "rms":
        nn.init.uniform_(mixer.q_norm.weight)
        nn.init.uniform_(mixer.k_norm.weight)
    x, position = torch.randn(2, 9, 12, dtype=torch.float64), angles(9, 6)
    y, _ = mixer(x, position=position)
    # fp64 on both sides: only the order of sums differs.
    torch.testing.assert_close(y[1], by_attention(mixer, x[1], position if rope else None), atol=1e-12, rtol=1e-12)
    assert torch.equal(mixer(x)[0], mixer(x, position=None)[0])


def test_a_mixer_started_to_mimic_passes_its_input_through_the_convolution() -> None:
    mixer, plain = build(conv_width=4, conv_activation="identity"), build(conv_width=0)
    mixer.initialize("mimic", torch.Generator().manual_seed(0))
    plain.load_state_dict({name: t for name, t in mixer.state_dict().items() if not name.startswith("conv1d")})
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[0], plain(x)[0], atol=1e-12, rtol=1e-12)


def test_each_parameter_has_one_side_and_a_finer_role() -> None:
    mixer = build(qk_norm="rms", qkv_bias=True)
    roles = mixer.roles()
    assert list(roles) == [name for name, _ in mixer.named_parameters()]
    assert roles["k_proj.bias"] == {"qkv"}
    assert roles["conv1d.weight"] == {"new", "conv"}
    assert roles["g_proj.weight"] == {"new", "gate"}
    assert roles["g_norm.weight"] == roles["q_norm.weight"] == {"new", "norm"}
    assert roles["decay_proj.bias"] == {"new", "decay"}


def test_a_parameter_without_a_role_is_named() -> None:
    mixer = build()
    mixer.extra = nn.Linear(2, 2)
    with pytest.raises(PluginError, match=r"has a parameter 'extra.weight'.*they name decay, scale, decay_proj"):
        mixer.roles()


def test_only_decay_constants_keep_fp32_in_a_bf16_model() -> None:
    mixer = build().float().bfloat16()
    kept = {name for name, parameter in mixer.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {"decay"}


def test_the_norm_and_the_gate_can_each_be_left_out() -> None:
    y, gate, norm = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), nn.RMSNorm(5, eps=1e-5)
    assert torch.equal(norm_and_gate(y, None, None), y)
    assert torch.equal(norm_and_gate(y, None, gate), y * F.silu(gate))
    assert torch.equal(norm_and_gate(y, norm, None), norm(y))
    # Two ways to the same fp32 numbers: a few roundings apart.
    torch.testing.assert_close(norm_and_gate(y, norm, gate), norm(y) * F.silu(gate), atol=1e-6, rtol=1e-5)


def test_a_head_of_zeros_has_no_direction_and_a_finite_gradient() -> None:
    x = torch.zeros(1, 1, 1, 4, requires_grad=True)
    y = unit_length(x, 1e-6)
    y.sum().backward()
    assert (y == 0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_a_mixer_turns_the_pairs_that_its_teacher_turns(style: RopeStyle) -> None:
    torch.manual_seed(0)
    options = LinearMixerOptions(conv_width=0, output_norm=False, gate=False)
    mixer = PlainLinearAttention(options, dataclasses.replace(SITE, rope_style=style)).double()
    x, position = torch.randn(2, 7, 12, dtype=torch.float64), angles(7, 6)
    q, k, v = (p(x).view(2, 7, -1, w) for p, w in ((mixer.q_proj, 6), (mixer.k_proj, 6), (mixer.v_proj, 5)))
    q, k = rotate(q, position, style), rotate(k, position, style).repeat_interleave(2, 2)
    scores = torch.einsum("btnk,bsnk->bnts", q, k).tril()
    wanted = torch.einsum("bnts,bsnv->btnv", scores, v.repeat_interleave(2, 2))
    torch.testing.assert_close(mixer(x, position=position)[0], wanted)


def test_one_tap_and_unknown_norms_are_refused() -> None:
    with pytest.raises(ValidationError, match="one tap mixes nothing"):
        LinearMixerOptions(conv_width=1)
    with pytest.raises(ValidationError, match="qk_norm"):
        LinearMixerOptions.model_validate({"qk_norm": "layer"})


def test_a_mixer_without_a_recurrence_says_so() -> None:
    mixer = LinearMixer(LinearMixerOptions(), SITE)
    with pytest.raises(NotImplementedError, match=r"no recurrence; define recur\(\), which returns"):
        mixer(torch.randn(1, 2, 12))


def test_only_kernels_that_run_are_described() -> None:
    named = build()
    assert [line.split(":")[0] for line in named.describe_backends("cpu")] == ["gated on cpu", "conv on cpu"]
    plain = LinearMixer(LinearMixerOptions(conv_width=0), SITE)
    assert plain.describe_backends("cpu") == []
