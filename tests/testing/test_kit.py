"""The kit bites: for each check there is a mixer, or a seeder, with one fault that this check alone finds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from linearize_mmmamba.seeding import mimic
from pydantic import field_validator
from torch import Tensor, nn

from linearize.mixing.mixer import LinearMixer
from linearize.mixing.options import LinearMixerOptions
from linearize.mixing.rotary import rotate
from linearize.plugins import Plugins
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport, SeedStyle, State
from linearize.recipe.reference import OWN_ORIGINS
from linearize.specs import MixerSpec, NoOptions, SeederSpec
from linearize.testing import MixerConformance, SeederConformance

SOURCE = "https://example.org/a-paper"


class Options(LinearMixerOptions):
    """Options of the sound mixer."""


class Sound(LinearMixer):
    """S_t = exp(g) S_{t-1} + k_t v_tᵀ with one learnt g per head; keeps every promise."""

    own_roles: ClassVar[Mapping[str, str]] = {"decay": "decay"}

    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(
            config, site, operation="gated", backend=config.backend, qk_norm=config.qk_norm, rope=config.rope
        )

    def add_parameters(self) -> None:
        self.decay = nn.Parameter(torch.zeros(self.site.num_heads))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.decay.fill_(2.0 if style == "mimic" else 0.0)

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        return F.logsigmoid(self.decay).expand(*x_BTD.shape[:2], -1)

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
        g_BTN, write_BTN = self.log_decay(x_BTD), None
        if valid_BT is not None:
            write_BTN = valid_BT.unsqueeze(-1).expand_as(g_BTN).to(g_BTN.dtype)
            g_BTN = g_BTN * write_BTN
        y_BTNV, memory = self.recurrence(x_BTD.device).kernel(
            q_BTNK, k_BTMK, v_BTMV, g_BTN, write_BTN=write_BTN, segments_BT=segments_BT,
            state_BNKV=None if state is None else state["memory"],
        )  # fmt: skip
        return y_BTNV, {"memory": memory}


class WrongAfterAChunk(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        length = x_BTD.shape[1]
        if length > 1 and length % 64 == 1:
            y = torch.cat([y[:, :-1], y[:, -1:] / 2], 1)
        return y, state


class NormalisedOverTheSequence(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        return y * (100 / x_BTD.detach().abs().amax()).clamp(max=1), state


class WithoutMemory(Sound):
    def recur(self, x_BTD: Tensor, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> tuple[Tensor, State]:
        apart = torch.arange(x_BTD.shape[1]).expand(len(x_BTD), -1)
        y, _ = super().recur(x_BTD, q, k, v, valid_BT=more["valid_BT"], segments_BT=apart, state=None)
        return y * self.log_decay(x_BTD).unsqueeze(-1), {"memory": x_BTD.new_zeros(len(x_BTD))}


class DecodesWithoutDecay(Sound):
    def recur(self, x_BTD: Tensor, *qkv: Tensor, state: State | None, **more: Any) -> tuple[Tensor, State]:
        if x_BTD.shape[1] == 1 and state is not None:
            state = {"memory": state["memory"] / self.log_decay(x_BTD)[:, 0, :, None, None].exp()}
        return super().recur(x_BTD, *qkv, state=state, **more)


class PrefillForgetsTheState(Sound):
    def recur(self, x_BTD: Tensor, *qkv: Tensor, state: State | None, **more: Any) -> tuple[Tensor, State]:
        return super().recur(x_BTD, *qkv, state=state if x_BTD.shape[1] == 1 else None, **more)


class IgnoresSegments(Sound):
    def recur(self, *inputs: Tensor, segments_BT: Tensor | None, **more: Any) -> tuple[Tensor, State]:
        return super().recur(*inputs, segments_BT=None, **more)


class ConvolvesOverPads(Sound):
    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(config, site)
        convolve = self.conv1d.forward
        self.conv1d.forward = lambda x, **more: convolve(x, **{**more, "valid_BT": None})  # type: ignore[method-assign]


class DecaysAtPads(Sound):
    def recur(self, x_BTD: Tensor, *qkv: Tensor, valid_BT: Tensor | None, **more: Any) -> tuple[Tensor, State]:
        if valid_BT is None:
            return super().recur(x_BTD, *qkv, valid_BT=None, **more)
        q, k, v = qkv
        return super().recur(x_BTD, q, k * valid_BT[..., None, None], v, valid_BT=None, **more)


class KeepsItsInputs(Sound):
    def forward(self, x_BTD: Tensor, *, state: State | None = None, **more: Any) -> tuple[Tensor, State]:
        y, new = super().forward(x_BTD, state=state, **more)
        return y, new | {"inputs": x_BTD if state is None else torch.cat([state["inputs"], x_BTD], 1)}


class KeepsHeadsFirst(Sound):
    def recur(self, *inputs: Tensor, state: State | None, **more: Any) -> tuple[Tensor, State]:
        state = None if state is None else {"memory": state["memory"].transpose(0, 1)}
        y, new = super().recur(*inputs, state=state, **more)
        return y, {"memory": new["memory"].transpose(0, 1)}


class DetachesItsDecay(Sound):
    def log_decay(self, x_BTD: Tensor) -> Tensor:
        return super().log_decay(x_BTD).detach()


class DoublesGradients(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        return 2 * y - y.detach(), state


class LeavesNothingOut(Sound):
    branches = ("memory", "nothing")
    left_out: frozenset[str] = frozenset()


class NeverDecaysInBf16(Sound):
    def log_decay(self, x_BTD: Tensor) -> Tensor:
        return super().log_decay(x_BTD) * (x_BTD.dtype != torch.bfloat16)


class OffByAFactor(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        return 1.5 * y, state


class DrawsFeaturesItDoesNotSave(Sound):
    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(config, site)
        self.features = torch.rand(site.key_dim, dtype=torch.float64)

    def recur(self, x_BTD: Tensor, q: Tensor, *kv: Tensor, **more: Any) -> tuple[Tensor, State]:
        return super().recur(x_BTD, q * self.features.to(q.dtype), *kv, **more)


class DoublingOptions(Options):
    """Reads 64 where 32 was saved."""

    @field_validator("chunk_size")
    @classmethod
    def _double(cls, size: int) -> int:
        return 2 * size


class DrawsFromTheGlobalGenerator(Sound):
    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.decay.uniform_()


class LeavesAParameterWithoutARole(Sound):
    def roles(self) -> Mapping[str, frozenset[str]]:
        return {name: found for name, found in super().roles().items() if name != "decay"}


class StandAlone(nn.Module):
    """A mixer on nn.Module alone, a loop over tokens."""

    projections: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

    def __init__(self, config: Options, site: AttentionSite) -> None:
        super().__init__()
        self.site = site
        self.q_proj = nn.Linear(site.hidden_size, site.num_heads * site.key_dim)
        self.k_proj = nn.Linear(site.hidden_size, site.num_key_value_heads * site.key_dim)
        self.v_proj = nn.Linear(site.hidden_size, site.num_key_value_heads * site.value_dim)
        self.keep = nn.Parameter(torch.zeros(site.num_heads))

    def roles(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset({"new", "decay"} if name == "keep" else {"qkv"}) for name, _ in self.named_parameters()}

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.keep.fill_(2.0)
        if style == "scratch":
            for name in self.projections.values():
                for parameter in getattr(self, name).parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / self.site.hidden_size**0.5)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        site, (batch, length, _) = self.site, x_BTD.shape
        share = site.num_heads // site.num_key_value_heads
        q = self.q_proj(x_BTD).unflatten(-1, (-1, site.key_dim))
        k = self.k_proj(x_BTD).unflatten(-1, (-1, site.key_dim)).repeat_interleave(share, 2)
        v = self.v_proj(x_BTD).unflatten(-1, (-1, site.value_dim)).repeat_interleave(share, 2)
        memory = x_BTD.new_zeros(batch, site.num_heads, site.key_dim, site.value_dim) if state is None else state["s"]
        outputs = []
        for t in range(length):
            if segments_BT is not None and t:
                memory = memory * (segments_BT[:, t] == segments_BT[:, t - 1])[:, None, None, None]
            after = torch.sigmoid(self.keep)[:, None, None] * memory + k[:, t, :, :, None] * v[:, t, :, None]
            memory = after if valid_BT is None else torch.where(valid_BT[:, t, None, None, None], after, memory)
            outputs.append((q[:, t, :, None] @ memory).squeeze(2))
        return torch.stack(outputs, 1), {"s": memory}


def conformance(mixer: type[nn.Module], options: type[Options] = Options) -> type[MixerConformance]:
    """The kit for one of the mixers above, as if it were registered."""
    spec = MixerSpec(
        name="broken", build=f"{__name__}:{mixer.__name__}", config=f"{__name__}:{options.__name__}", source=SOURCE
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


def failing(kit: type[Any]) -> set[str]:
    """The checks of a conformance class that do not pass; a skipped one counts as passed."""
    names = set()
    for name in checks(kit):
        try:
            getattr(kit(), name)({})
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception):
            names.add(name)
    return names


def checks(kit: type[Any]) -> list[str]:
    return [name for name in dir(kit) if name.startswith("test_")]


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
    "test_rows_of_the_state_go_with_rows_of_the_batch": conformance(KeepsHeadsFirst),
    "test_every_parameter_gets_a_finite_gradient": conformance(DetachesItsDecay),
    "test_gradients_are_the_slopes_of_the_output": conformance(DoublesGradients),
    "test_each_branch_can_be_left_out": conformance(LeavesNothingOut),
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


# Seeders: mmMamba's, with one fault each.

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


def test_importing_the_kit_collects_nothing_and_linearize_itself_imports_no_pytest() -> None:
    assert not MixerConformance.__name__.startswith("Test")
    assert not SeederConformance.__name__.startswith("Test")
    code = "import linearize, linearize.plugins, sys; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
