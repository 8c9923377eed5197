"""The kit bites: for each check there is a mixer with one fault that this check alone finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from broken_mixers import (
    ConvolvesOverPads,
    DecaysAtPads,
    DecodesWithoutDecay,
    DetachesItsDecay,
    DoublesGradients,
    DoublingOptions,
    DrawsFeaturesItDoesNotSave,
    DrawsFromTheGlobalGenerator,
    ForgetsWithoutAToken,
    IgnoresSegments,
    KeepsHeadsFirst,
    KeepsItsInputs,
    LeavesAParameterWithoutARole,
    LeavesNothingOut,
    MiscountsItsState,
    NeverDecaysInBf16,
    NormalisedOverTheSequence,
    OffByAFactor,
    Options,
    PrefillForgetsTheState,
    ReadsItsGate,
    Sound,
    StandAlone,
    WithoutMemory,
    WrongAfterAChunk,
)
from kit_checks import checks, failing
from torch import Tensor, nn

from linearize.mixing.rotary import rotate
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, SeederSpec
from linearize.recipe.reference import OWN_ORIGINS
from linearize.testing import MixerConformance, SeederConformance


def conformance(mixer: type[nn.Module], options: type[Options] = Options) -> type[MixerConformance]:
    """The kit for one of the mixers above, as if it were registered."""
    spec = MixerSpec(
        name="broken",
        build=f"broken_mixers:{mixer.__name__}",
        config=f"broken_mixers:{options.__name__}",
        source="https://example.org/a-paper",
    )

    class Kit(MixerConformance):
        def spec(self) -> MixerSpec:
            return spec

    return Kit


class WithReference(conformance(OffByAFactor)):  # type: ignore[misc]
    """The formula token by token, for heads that share keys and values."""

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_formula(mixer, x_TD, position)


class SoundWithReference(conformance(Sound)):  # type: ignore[misc]
    reference = WithReference.reference


def by_formula(mixer: Sound, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    raw = torch.cat([mixer.v_proj(x_TD), mixer.k_proj(x_TD), mixer.q_proj(x_TD)], -1)
    before = F.pad(raw, (0, 0, 1, 0))[:-1]
    taps = mixer.conv1d.weight[:, 0]
    vkq = mixer.conv1d.bias + taps[:, 0] * before + taps[:, 1] * raw
    v, k, q = (part.unflatten(-1, (-1, width)) for part, width in zip(vkq.split([10, 12, 24], -1), (5, 6, 6)))  # noqa: B905
    k, q = rotate(k.unsqueeze(0), position)[0], rotate(q.unsqueeze(0), position)[0]
    state, outputs = torch.zeros(4, 6, 5, dtype=x_TD.dtype), []
    for t in range(len(x_TD)):
        heads = []
        for head in range(4):
            state[head] = torch.sigmoid(mixer.decay[head]) * state[head] + torch.outer(k[t, head // 2], v[t, head // 2])
            y = q[t, head] @ state[head]
            heads.append(y / (y.square().mean() + 1e-5).sqrt() * mixer.g_norm.weight)
        outputs.append(torch.stack(heads) * F.silu(mixer.g_proj(x_TD[t])).view(4, 5))
    return torch.stack(outputs)


BROKEN_MIXERS: dict[str, type[MixerConformance]] = {
    "test_every_length_gives_the_beginning_of_a_longer_sequence": conformance(WrongAfterAChunk),
    "test_no_output_depends_on_a_later_token": conformance(NormalisedOverTheSequence),
    "test_an_output_depends_on_earlier_tokens": conformance(WithoutMemory),
    "test_step_by_step_equals_the_whole": conformance(DecodesWithoutDecay),
    "test_chunked_prefill_equals_the_whole": conformance(PrefillForgetsTheState),
    "test_packed_documents_equal_the_documents_alone": conformance(IgnoresSegments),
    "test_a_left_padded_row_equals_the_row_alone": conformance(ConvolvesOverPads),
    "test_pads_leave_the_state_alone": conformance(DecaysAtPads),
    "test_the_state_has_one_size_whatever_the_length": conformance(KeepsItsInputs),
    "test_its_empty_state_is_the_state_before_the_first_token": conformance(MiscountsItsState),
    "test_a_call_without_a_token_changes_nothing": conformance(ForgetsWithoutAToken),
    "test_rows_of_the_state_go_with_rows_of_the_batch": conformance(KeepsHeadsFirst),
    "test_every_parameter_gets_a_finite_gradient": conformance(DetachesItsDecay),
    "test_gradients_are_the_slopes_of_the_output": conformance(DoublesGradients),
    "test_each_branch_can_be_left_out": conformance(LeavesNothingOut),
    "test_a_hook_on_a_module_takes_effect_in_prefill_and_in_steps": conformance(ReadsItsGate),
    "test_bf16_is_near_fp32": conformance(NeverDecaysInBf16),
    "test_it_agrees_with_its_reference": WithReference,
    "test_a_mixer_saved_and_loaded_is_the_same": conformance(DrawsFeaturesItDoesNotSave),
    "test_its_options_survive_a_recipe_and_a_saved_student": conformance(Sound, DoublingOptions),
    "test_its_start_depends_on_the_generator_alone": conformance(DrawsFromTheGlobalGenerator),
    "test_every_seeder_can_account_for_it": conformance(LeavesAParameterWithoutARole),
}


def test_a_sound_mixer_passes_every_check() -> None:
    assert failing(SoundWithReference) == set()


def test_a_mixer_needs_no_base_class_of_ours_to_pass() -> None:
    assert failing(conformance(StandAlone)) == set()


def test_each_check_of_a_mixer_has_its_broken_mixer() -> None:
    assert set(BROKEN_MIXERS) == set(checks(MixerConformance))


@pytest.mark.parametrize("check", BROKEN_MIXERS)
def test_a_broken_mixer_is_caught_by_one_check_alone(check: str) -> None:
    assert failing(BROKEN_MIXERS[check]) == {check}


def test_every_mixer_and_seeder_of_this_repository_runs_the_kit() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    classes = re.findall(r"^class Test\w+\((\w+)\):(.*?)(?=^\S|\Z)", tests, re.MULTILINE | re.DOTALL)
    for kind, suffix in ((MixerSpec, "Conformance"), (SeederSpec, "SeederConformance")):
        checked = {
            name for base, body in classes if base.endswith(suffix) for name in re.findall(r'name = "(\w+)"', body)
        }
        own = [record for record in Plugins.discover().records if record.origin in OWN_ORIGINS]
        registered = {spec.name for record in own for spec in record.specs if isinstance(spec, kind)}
        assert registered
        assert registered <= checked


def test_importing_the_kit_collects_nothing() -> None:
    assert not MixerConformance.__name__.startswith("Test")
    assert not SeederConformance.__name__.startswith("Test")
