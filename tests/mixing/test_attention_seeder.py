"""Seeding on a toy mixer that follows the Mixer protocol; letters as in linearize.protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from linearize.errors import PluginError
from linearize.mixing.attention_seeder import copy_qkv, mimic, scratch
from linearize.plugin.specs import NoOptions
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport, SeedStyle

D, N, M, K, V = 12, 4, 2, 3, 5
SITE = AttentionSite(
    index=7, path="model.layers.7.self_attn", tower="language", layer=3, cache_index=7,
    hidden_size=D, num_heads=N, num_key_value_heads=M, key_dim=K, value_dim=V,
)  # fmt: skip


class ToyMixer(nn.Module):
    projections: Mapping[str, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

    def __init__(self, *, bias: bool = False, key_heads: int = M) -> None:
        super().__init__()
        self.q_proj = nn.Linear(D, N * K, bias=bias)
        self.k_proj = nn.Linear(D, key_heads * K, bias=bias)
        self.v_proj = nn.Linear(D, M * V, bias=bias)
        self.gate = nn.Linear(D, N)
        self.decay = nn.Parameter(torch.ones(N))

    def roles(self) -> dict[str, frozenset[str]]:
        return {
            name: frozenset({"qkv"} if name.startswith(("q_", "k_", "v_")) else {"new"})
            for name, _ in self.named_parameters()
        }

    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        nn.init.normal_(self.gate.weight, generator=generator)
        nn.init.constant_(self.gate.bias, 1.0 if style == "mimic" else 0.0)
        nn.init.constant_(self.decay, -3.0 if style == "mimic" else 0.5)
        if style == "scratch":
            for linear in (self.q_proj, self.k_proj, self.v_proj):
                nn.init.normal_(linear.weight, generator=generator)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)


def teacher_weights(**more: Any) -> AttentionWeights:
    generator = torch.Generator().manual_seed(5)
    shapes = {"q": (N * K, D), "k": (M * K, D), "v": (M * V, D), "o": (D, N * V)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return AttentionWeights(**drawn, scale=K**-0.5, **more)


def seed(builder: Any, weights: AttentionWeights, mixer: nn.Module, number: int = 0) -> SeedReport:
    report = builder(NoOptions()).seed(weights, mixer, site=SITE, generator=torch.Generator().manual_seed(number))
    assert isinstance(report, SeedReport)
    return report


def test_mimic_copies_the_projections_and_asks_the_mixer_for_the_rest() -> None:
    weights, mixer = teacher_weights(), ToyMixer()
    report = seed(mimic, weights, mixer)
    for name in "qkv":
        assert torch.equal(getattr(mixer, f"{name}_proj").weight, getattr(weights, name))
    assert torch.equal(mixer.decay, torch.full((N,), -3.0))
    assert report.site == 7
    assert report.parameters == {
        "q_proj.weight": "copied", "k_proj.weight": "copied", "v_proj.weight": "copied",
        "gate.weight": "derived", "gate.bias": "derived", "decay": "derived",
    }  # fmt: skip
    assert report.teacher == {"q": "used", "k": "used", "v": "used", "o": "kept"}


def test_copy_qkv_copies_the_projections_and_draws_the_rest_from_scratch() -> None:
    weights, mixer = teacher_weights(), ToyMixer()
    report = seed(copy_qkv, weights, mixer)
    assert torch.equal(mixer.k_proj.weight, weights.k)
    assert torch.equal(mixer.decay, torch.full((N,), 0.5))
    assert report.parameters["k_proj.weight"] == "copied"
    assert report.parameters["decay"] == report.parameters["gate.weight"] == "fresh"


def test_scratch_takes_nothing_and_says_that_q_k_v_are_dropped() -> None:
    weights, mixer = teacher_weights(), ToyMixer()
    report = seed(scratch, weights, mixer)
    assert not torch.equal(mixer.q_proj.weight, weights.q)
    assert set(report.parameters.values()) == {"fresh"}
    assert report.parameters.keys() == dict(mixer.named_parameters()).keys()
    assert report.teacher == {"q": "dropped", "k": "dropped", "v": "dropped", "o": "kept"}


@pytest.mark.parametrize("builder", [mimic, copy_qkv, scratch])
def test_seeding_twice_with_one_seed_gives_the_same_mixer(builder: Any) -> None:
    first, second = ToyMixer(bias=True), ToyMixer(bias=True)
    seed(builder, teacher_weights(), first)
    seed(builder, teacher_weights(), second, number=1)
    seed(builder, teacher_weights(), second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_biases_are_copied_where_the_teacher_has_them_and_zero_where_it_has_not() -> None:
    weights, mixer = teacher_weights(q_bias=torch.arange(N * K).float(), o_bias=torch.ones(D)), ToyMixer(bias=True)
    report = seed(mimic, weights, mixer)
    assert torch.equal(mixer.q_proj.bias, torch.arange(N * K).float())
    assert torch.equal(mixer.k_proj.bias, torch.zeros(M * K))
    assert report.parameters["q_proj.bias"] == "copied"
    assert report.parameters["k_proj.bias"] == "derived"
    assert report.teacher["q_bias"] == "used"
    assert report.teacher["o_bias"] == "kept"


def test_teacher_tensors_without_a_place_are_reported_as_dropped() -> None:
    report = seed(mimic, teacher_weights(q_norm=torch.ones(K), q_bias=torch.ones(N * K)), ToyMixer())
    assert report.teacher["q_norm"] == report.teacher["q_bias"] == "dropped"


def test_copied_weights_take_the_mixers_dtype() -> None:
    weights, mixer = teacher_weights(), ToyMixer().to(torch.bfloat16)
    seed(mimic, weights, mixer)
    assert torch.equal(mixer.q_proj.weight, weights.q.to(torch.bfloat16))


def test_a_wrong_shape_is_an_error_that_names_both_shapes_and_the_site() -> None:
    mixer = ToyMixer(key_heads=N)
    shapes = r"site 7 .*k_proj.weight has shape \[12, 12\], the teacher's k has \[6, 12\]"
    with pytest.raises(PluginError, match=shapes):
        seed(mimic, teacher_weights(), mixer)


def test_a_qkv_parameter_that_no_projection_names_is_an_error() -> None:
    mixer = ToyMixer()
    mixer.projections = {"q": "q_proj", "k": "k_proj"}
    with pytest.raises(PluginError, match=r"leads to v_proj.weight, which have the role 'qkv'"):
        seed(mimic, teacher_weights(), mixer)


def test_a_parameter_that_initialize_forgets_is_an_error() -> None:
    class Forgetful(ToyMixer):
        def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
            super().initialize(style, generator)
            self.forgotten.data.mul_(2)

    mixer = Forgetful()
    mixer.forgotten = nn.Parameter(torch.ones(2))
    with pytest.raises(PluginError, match=r"initialize\('mimic'\) left forgotten unset"):
        seed(mimic, teacher_weights(), mixer)


def test_a_parameter_without_a_role_is_an_error() -> None:
    class Roleless(ToyMixer):
        def roles(self) -> dict[str, frozenset[str]]:
            return {name: found for name, found in super().roles().items() if name != "decay"}

    with pytest.raises(PluginError, match="without a role: decay"):
        seed(mimic, teacher_weights(), Roleless())


def test_a_parameter_that_is_both_qkv_and_new_is_an_error() -> None:
    class Undecided(ToyMixer):
        def roles(self) -> dict[str, frozenset[str]]:
            return {**super().roles(), "decay": frozenset({"qkv", "new"})}

    with pytest.raises(PluginError, match="exactly one of the roles 'qkv' and 'new'; not so decay"):
        seed(mimic, teacher_weights(), Undecided())


def test_a_projection_that_does_not_exist_is_an_error() -> None:
    mixer = ToyMixer()
    mixer.projections = {"q": "query", "k": "k_proj", "v": "v_proj"}
    with pytest.raises(PluginError, match=r"sends q to 'query', but there is no parameter 'query.weight'"):
        seed(mimic, teacher_weights(), mixer)
