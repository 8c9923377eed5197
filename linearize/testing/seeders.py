"""What every seeder has to keep, as a class of tests to inherit from.

from linearize.testing import SeederConformance


class TestMimic(SeederConformance):
    name = "mimic"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from linearize.distill.seeding import require_full_account
from linearize.errors import LinearizeError
from linearize.mixing.heads import repeat_for_query_heads
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.options import LinearMixerOptions
from linearize.plugin.specs import SeederSpec
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport, SeedStyle
from linearize.recipe.toml import to_inline
from linearize.testing.mixer_inputs import attention_weights, installed_plugins
from linearize.testing.mixers import MixerConformance


class SeederConformance:
    """Inherit from it, name the seeder, and give the option tables to try.

    Attributes:
        name: what a recipe writes behind ``student.seeder.type``.
        options: option tables; each check runs with each of them.
        site: the attention that gives its weights.
    """

    name: ClassVar[str]
    options: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    site: ClassVar[AttentionSite] = MixerConformance.site

    # What an author may override.

    def spec(self) -> SeederSpec:
        """The registered seeder."""
        return installed_plugins().registry.get(SeederSpec, self.name, installed_plugins().failures_hint())

    def build(self, options: Mapping[str, Any]) -> Any:
        """The seeder with these options."""
        spec = self.spec()
        return spec.builder()(spec.config_class().model_validate(options))

    def mixer(self, site: AttentionSite) -> Any:
        """A mixer to seed, for a seeder that serves any; one made for a single kind of mixer returns that."""
        return _Seedling(LinearMixerOptions(qkv_bias=True), site, qk_norm="rms")

    # What the checks are made of.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs each check once for each option table."""
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", self.options, ids=[to_inline(options) for options in self.options])

    def seed(self, options: Mapping[str, Any], mixer: Any, weights: AttentionWeights, *, number: int = 0) -> SeedReport:
        """Seeds ``mixer`` with a generator of seed ``number``."""
        report: SeedReport = self.build(options).seed(
            weights, mixer, site=self.site, generator=torch.Generator().manual_seed(number)
        )
        return report

    # The checks.

    def test_the_report_accounts_for_every_parameter_and_tensor(self, options: Mapping[str, Any]) -> None:
        """From teachers with and without biases and with norms of q and k."""
        for weights in self._teachers():
            mixer = self.mixer(self.site)
            report = self.seed(options, mixer, weights)
            require_full_account(report, dict(mixer.named_parameters()), weights.tensors(), self.build(options))
            assert report.site == self.site.index, f"the report is of site {report.site}, not {self.site.index}"

    def test_every_parameter_is_set(self, options: Mapping[str, Any]) -> None:
        """A parameter that held not-a-number before holds a number after."""
        mixer = self.mixer(self.site)
        _fill(mixer, torch.nan)
        self.seed(options, mixer, attention_weights(self.site, biases=True))
        unset = [name for name, parameter in mixer.named_parameters() if not bool(parameter.isfinite().all())]
        assert not unset, f"not set: {', '.join(unset)}"

    def test_what_is_said_to_be_copied_is_the_teachers(self, options: Mapping[str, Any]) -> None:
        """And the tensors that it came from are said to be used, no others."""
        for weights in self._teachers():
            mixer = self.mixer(self.site)
            report = self.seed(options, mixer, weights)
            copied = {name: p for name, p in mixer.named_parameters() if report.parameters.get(name) == "copied"}
            repeated = getattr(mixer, "repeated", ())
            found = {
                name: self._equal_to(parameter, weights, is_repeated=name.rpartition(".")[0] in repeated)
                for name, parameter in copied.items()
            }
            strangers = sorted(name for name, source in found.items() if source is None)
            assert not strangers, f"said to be copied, but equal to no teacher tensor: {', '.join(strangers)}"
            unused = sorted(str(source) for source in found.values() if report.teacher.get(str(source)) != "used")
            assert not unused, f"copied, but not said to be used: {', '.join(unused)}"

    def test_seeding_again_gives_the_same(self, options: Mapping[str, Any]) -> None:
        """Over a mixer that was seeded before, and whatever torch's global generator has drawn."""
        mixer, results = self.mixer(self.site), []
        for number in (0, 1):
            torch.manual_seed(number)
            report = self.seed(options, mixer, attention_weights(self.site, biases=True))
            results.append((report, {name: p.detach().clone() for name, p in mixer.named_parameters()}))
        assert results[0][0] == results[1][0], "the reports differ"
        different = [name for name, value in results[0][1].items() if not torch.equal(value, results[1][1][name])]
        assert not different, f"seeded twice with one seed, these differ: {', '.join(different)}"

    def test_the_teacher_is_left_as_it_was(self, options: Mapping[str, Any]) -> None:
        """Its weights are views into the model that the student is compared with, and no mixer may share them."""
        weights, mixer = attention_weights(self.site, biases=True), self.mixer(self.site)
        before = {name: tensor.clone() for name, tensor in weights.tensors().items()}
        self.seed(options, mixer, weights)
        _fill(mixer, 7.0)
        changed = [name for name, tensor in weights.tensors().items() if not torch.equal(tensor, before[name])]
        assert not changed, f"written to: {', '.join(changed)}"

    def test_a_wrong_shape_is_refused_with_both_shapes(self, options: Mapping[str, Any]) -> None:
        """For each projection that the seeder uses: a tensor of other rows than the mixer has place for."""
        weights = attention_weights(self.site, biases=False)
        report = self.seed(options, self.mixer(self.site), weights)
        for name in ("q", "k", "v"):
            if report.teacher.get(name) != "used":
                continue
            right: Tensor = getattr(weights, name)
            wrong = torch.cat([right, right])
            changed: dict[str, Any] = {name: wrong}
            with pytest.raises((LinearizeError, ValueError)) as caught:
                self.seed(options, self.mixer(self.site), replace(weights, **changed))
            text = str(caught.value).replace("(", "[").replace(")", "]")
            missing = [str(shape) for shape in (list(right.shape), list(wrong.shape)) if str(shape) not in text]
            assert not missing, f"the error for {name} does not name {' and '.join(missing)}: {caught.value}"

    def _equal_to(self, parameter: Tensor, weights: AttentionWeights, *, is_repeated: bool) -> str | None:
        """The teacher tensor whose values ``parameter`` has, or has once for each query head; None: there is none."""
        for name, tensor in weights.tensors().items():
            if is_repeated and name in ("k", "v", "k_bias", "v_bias"):
                tensor = repeat_for_query_heads(tensor, self.site)
            if torch.equal(tensor, parameter):
                return name
        return None

    def _teachers(self) -> list[AttentionWeights]:
        return [
            attention_weights(self.site, biases=biases, norms=norms)
            for biases, norms in ((False, False), (True, False), (True, True))
        ]


class _Seedling(LinearMixer):
    """A mixer with every kind of parameter that mixers have; it has no recurrence, as nothing runs it."""

    own_roles: ClassVar[Mapping[str, str]] = {"decay": "decay", "decay_proj": "decay"}

    def add_parameters(self) -> None:
        self.decay = nn.Parameter(torch.zeros(self.site.num_heads))
        self.decay_proj = nn.Linear(self.site.hidden_size, self.site.num_heads)

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.decay.fill_(1.0 if style == "mimic" else 0.0)
        for parameter in self.decay_proj.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def _fill(mixer: nn.Module, value: float) -> None:
    for parameter in mixer.parameters():
        parameter.fill_(value)
