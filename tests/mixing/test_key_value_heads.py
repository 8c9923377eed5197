"""The option key_value_heads on every mixer of this repository: what it adds, where it starts, how it is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from linearize.errors import PluginError
from linearize.mixing.heads import repeat_for_query_heads
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, SeederSpec
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport
from linearize.recipe.reference import OWN_ORIGINS
from linearize.student.mixers import build_mixer
from linearize.testing import MixerConformance
from linearize.testing.mixer_inputs import attention_weights
from linearize.testing.numbers import positions_of

SITE = MixerConformance.site
N, M, K, V, D = 4, 2, 6, 5, 12
FRAME = ("k_proj", "v_proj", "conv1d")
REGISTRY = Plugins.discover().registry
SPECS = {
    spec.name: spec
    for record in Plugins.discover().records
    if record.origin in OWN_ORIGINS
    for spec in record.specs
    if isinstance(spec, MixerSpec) and "key_value_heads" in spec.config_class().model_fields
}


def build(name: str, site: AttentionSite = SITE, **options: Any) -> Any:
    return build_mixer(SPECS[name], SPECS[name].config_class().model_validate(options), site)


def seed(mixer: Any, weights: AttentionWeights, site: AttentionSite = SITE) -> SeedReport:
    spec = REGISTRY.get(SeederSpec, "mimic")
    seeder = spec.builder()(spec.config_class()())
    report: SeedReport = seeder.seed(weights, mixer, site=site, generator=torch.Generator().manual_seed(0))
    return report


def pair(name: str) -> tuple[Any, Any, SeedReport]:
    """A mixer with shared and one with own heads, seeded alike, in float64, and the report of the second."""
    weights = attention_weights(SITE, biases=True)
    grouped, own = build(name, qkv_bias=True), build(name, qkv_bias=True, key_value_heads="per_query")
    seed(grouped, weights)
    report = seed(own, weights)
    with torch.no_grad():
        for (path, ours), theirs in zip(own.named_parameters(), grouped.parameters(), strict=True):
            # What a mixer has of its own may be drawn, or spread over its heads: the same for both here.
            if ours.shape == theirs.shape:
                ours.copy_(theirs)
            elif not path.startswith(FRAME):
                ours.copy_(repeat_for_query_heads(theirs, SITE))
    return grouped.double(), own.double(), report


def test_every_mixer_over_linear_mixing_has_the_option() -> None:
    assert {
        "mamba2", "simple_gla", "retnet", "lightning", "gla", "hgrn2", "delta_net", "gated_delta_net", "kda",
        "feature_map",
    } <= set(SPECS)  # fmt: skip


def test_rows_are_repeated_head_by_head_as_query_heads_read_them() -> None:
    rows = torch.arange(M * 3).view(M * 3, 1)
    assert repeat_for_query_heads(rows, SITE).flatten().tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert torch.equal(repeat_for_query_heads(rows[:, 0], SITE), repeat_for_query_heads(rows, SITE)[:, 0])


@pytest.mark.parametrize("name", SPECS)
def test_own_heads_are_rows_of_the_projections_and_channels_and_nothing_else_but_what_is_sized_by_heads(
    name: str,
) -> None:
    grouped, own = (build(name, conv_width=2, key_value_heads=heads) for heads in ("grouped", "per_query"))
    channels, more = N * V + N * K + N * K, 0
    due = {"k_proj.weight": (N * K, D), "v_proj.weight": (N * V, D), "conv1d.weight": (channels, 1, 2),
           "conv1d.bias": (channels,)}  # fmt: skip
    for (path, ours), theirs in zip(own.named_parameters(), grouped.parameters(), strict=True):
        if path.startswith(FRAME):
            assert ours.shape == due[path]
        else:
            # What belongs to heads of k, as feature maps and gates of slots may.
            assert ours.shape in (theirs.shape, (theirs.shape[0] * N // M, *theirs.shape[1:])), path
        more += ours.numel() - theirs.numel()
    assert more >= (N - M) * (K + V) * (D + 2 + 1)  # rows of the projections, taps and biases of the convolution
    states = [mixer(torch.zeros(1, 3, D))[1] for mixer in (grouped, own)]
    assert states[1].pop("conv").shape == (1, channels, 1)
    for key, state in states[1].items():
        assert state.numel() in (states[0][key].numel(), states[0][key].numel() * N // M), key


@pytest.mark.parametrize("name", SPECS)
def test_copied_heads_start_as_the_shared_ones_and_gradients_of_copies_add_up_to_theirs(name: str) -> None:
    grouped, own, report = pair(name)
    x = torch.randn(2, 20, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    position = positions_of(list(range(20)), K, x)
    toward = torch.randn(2, 20, N, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, wanted = own(x, position=position)[0], grouped(x, position=position)[0]
    # float64, the same products; sums in another order.
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)
    for part in ("k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            assert report.parameters[f"{part}.{kind}"] == "copied"
            (of_copies,) = torch.autograd.grad((found * toward).sum(), [getattr(own, part).get_parameter(kind)],
                                               retain_graph=True)  # fmt: skip
            (of_shared,) = torch.autograd.grad((wanted * toward).sum(), [getattr(grouped, part).get_parameter(kind)],
                                               retain_graph=True)  # fmt: skip
            summed = of_copies.unflatten(0, (M, N // M, -1)).sum(1).flatten(0, 1)
            torch.testing.assert_close(summed, of_shared, atol=1e-10, rtol=1e-8)
            # Copies are trained apart.
            assert not torch.equal(*of_copies.unflatten(0, (M, N // M, -1)).unbind(1))


def test_a_teacher_without_shared_heads_gives_each_query_head_its_own_anyway() -> None:
    site = replace(SITE, num_key_value_heads=N)
    weights = attention_weights(site, biases=False)
    for heads in ("grouped", "per_query"):
        mixer = build("mamba2", site, key_value_heads=heads)
        seed(mixer, weights, site)
        assert torch.equal(mixer.k_proj.weight, weights.k)


def test_seeding_own_heads_from_a_wrong_shape_names_the_copies_and_both_shapes() -> None:
    weights = attention_weights(SITE, biases=False)
    wrong = replace(weights, v=torch.cat([weights.v, weights.v]))
    text = r"v_proj.weight has shape \[20, 12\], 2 copies of each head of \[10, 12\], the teacher's v has \[20, 12\]"
    with pytest.raises(PluginError, match=text):
        seed(build("mamba2", key_value_heads="per_query"), wrong)
