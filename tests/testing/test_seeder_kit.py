"""The kit bites: for each check there is a seeder, mmMamba's with one fault, that this check alone finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit_checks import checks, failing

from linearize.mixing.attention_seeder import mimic
from linearize.plugin.specs import NoOptions
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport
from linearize.testing import SeederConformance

Seed = Callable[[AttentionWeights, Any, AttentionSite, torch.Generator], SeedReport]


def _sound(weights: AttentionWeights, mixer: Any, site: AttentionSite, generator: torch.Generator) -> SeedReport:
    return mimic(NoOptions()).seed(weights, mixer, site=site, generator=generator)


def _forgets_to_report(*arguments: Any) -> SeedReport:
    report = _sound(*arguments)
    del report.parameters["decay"]
    return report


@torch.no_grad()
def _forgets_to_set(weights: AttentionWeights, mixer: Any, *more: Any) -> SeedReport:
    before = mixer.decay.clone()
    report = _sound(weights, mixer, *more)
    mixer.decay.copy_(before)
    return report


@torch.no_grad()
def _scales_what_it_copies(weights: AttentionWeights, mixer: Any, *more: Any) -> SeedReport:
    report = _sound(weights, mixer, *more)
    mixer.k_proj.weight.mul_(2)
    return report


@torch.no_grad()
def _draws_globally(weights: AttentionWeights, mixer: Any, *more: Any) -> SeedReport:
    report = _sound(weights, mixer, *more)
    mixer.decay.uniform_()
    return report


def _shares_the_teachers_memory(weights: AttentionWeights, mixer: Any, *more: Any) -> SeedReport:
    report = _sound(weights, mixer, *more)
    mixer.v_proj.weight.data = weights.v
    return report


def _cuts_what_does_not_fit(weights: AttentionWeights, mixer: Any, *more: Any) -> SeedReport:
    rows = {name: getattr(mixer, f"{name}_proj").weight.shape[0] for name in "qkv"}
    return _sound(replace(weights, **{name: getattr(weights, name)[:count] for name, count in rows.items()}),
                  mixer, *more)  # fmt: skip


def seeder_conformance(seed: Seed) -> type[SeederConformance]:
    class Seeder:
        def seed(self, weights: AttentionWeights, mixer: Any, *, site: Any, generator: Any) -> SeedReport:
            return seed(weights, mixer, site, generator)

    class Kit(SeederConformance):
        def build(self, options: Mapping[str, Any]) -> Any:
            return Seeder()

    return Kit


BROKEN_SEEDERS: dict[str, type[SeederConformance]] = {
    "test_the_report_accounts_for_every_parameter_and_tensor": seeder_conformance(_forgets_to_report),
    "test_every_parameter_is_set": seeder_conformance(_forgets_to_set),
    "test_what_is_said_to_be_copied_is_the_teachers": seeder_conformance(_scales_what_it_copies),
    "test_seeding_again_gives_the_same": seeder_conformance(_draws_globally),
    "test_the_teacher_is_left_as_it_was": seeder_conformance(_shares_the_teachers_memory),
    "test_a_wrong_shape_is_refused_with_both_shapes": seeder_conformance(_cuts_what_does_not_fit),
}


def test_a_sound_seeder_passes_every_check() -> None:
    assert failing(seeder_conformance(_sound)) == set()


def test_each_check_of_a_seeder_has_its_broken_seeder() -> None:
    assert set(BROKEN_SEEDERS) == set(checks(SeederConformance))


@pytest.mark.parametrize("check", BROKEN_SEEDERS)
def test_a_broken_seeder_is_caught_by_one_check_alone(check: str) -> None:
    assert failing(BROKEN_SEEDERS[check]) == {check}
