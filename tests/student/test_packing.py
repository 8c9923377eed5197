"""Samples that share a row give the loss and the gradients of samples that have one each, with every mixer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkout import EXAMPLES

from linearize.api import check
from linearize.data.samples import SampleReader
from linearize.distill.objectives import LayerMse, LogitKl
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.distill.rehearsal import prove_packing
from linearize.distill.seeding import seed_student
from linearize.errors import RunError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols import TOKEN_PAD, Batch, Sample, TextRow
from linearize.student.convert import linearized_sites

RECIPE = EXAMPLES / "mmmamba_hovle.toml"
MIXERS = [spec.name for spec in Plugins.discover().registry.all(MixerSpec)]
OBJECTIVES = {
    "layer_mse": LayerMse(LayerMseConfig(normalize="variance")),
    "layer_mse of tokens": LayerMse(LayerMseConfig(space="output", reduction="sum")),
    "logit_kl": LogitKl(LogitKlConfig(hidden_weight=0.5)),
    "logit_kl of answers": LogitKl(LogitKlConfig(tokens="answers")),
    "logit_kl of conversations": LogitKl(LogitKlConfig(normalize="batch")),
}
WIDTH = 128
OPTIONS = {"sliding_window": {"window": 8}, "swa_linear": {"window": 8}}
"""Windows shorter than the samples."""


def make(mixer: str) -> tuple[Any, SampleReader, list[Sample]]:
    """The demo's teacher with such mixers, every third site kept, and samples with images, without, and of text."""
    torch.set_num_threads(1)
    layout = {"type": "every", "keep": 3}
    student = {"student.mixer": {"type": mixer, **OPTIONS.get(mixer, {})}, "student.layout": layout}
    checked = check(RECIPE, {"evaluate.benchmarks": [], **student})
    model = checked.adapter.load(dtype=torch.float32, device="cpu")
    seed_student(model, checked.adapter, checked.recipe, checked.plan, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from where a mixer that was just seeded is exact, and its loss 0
        for slot in linearized_sites(model):
            for parameter in slot.mixer.parameters() if slot.mixer is not None else ():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    reader = SampleReader(checked.adapter)
    source, kinds = checked.source, {}
    for index in range(40):
        one = source[index]
        if reader.num_tokens(one) <= 60:
            kinds.setdefault(len(one.images), []).append(one)  # type: ignore[union-attr]
    return (
        model,
        reader,
        [kinds[0][0], kinds[1][0], TextRow([5, 9, 11]), kinds[1][1], TextRow([4, 7, 8, 9, 5]), kinds[0][1]],
    )


def gradients(model: Any, objective: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    slots = [slot for slot in linearized_sites(model) if slot.mixer is not None]
    model.requires_grad_(False)
    for slot in slots:
        slot.mixer.requires_grad_(True)  # type: ignore[union-attr]
    model.zero_grad()
    weight = sum(map(objective.weight, batches))
    sites = [slot.site.index for slot in slots]
    loss = sum(float(objective.backward(model, batch, sites, weight).loss) for batch in batches)
    return loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    "mixer", [pytest.param(name, marks=[pytest.mark.slow] * (name != "mamba2")) for name in MIXERS]
)
def test_loss_and_every_gradient_are_those_of_samples_with_rows_of_their_own(mixer: str) -> None:
    model, reader, samples = make(mixer)
    alone, packed = [reader.batch([sample]) for sample in samples], reader.packed(samples, WIDTH)
    assert len(packed) < len(alone) / 2
    assert {batch.token_kind_BT.shape for batch in packed} == {(1, WIDTH)}
    assert sum(batch.num_samples for batch in packed) == len(samples)
    # fp32: the same sums in another order; a model that looks across samples is off by as much as the values are.
    for name, objective in OBJECTIVES.items():
        if name == "layer_mse":  # each batch has a variance of its own
            continue
        loss, wanted = gradients(model, objective, alone)
        packed_loss, found = gradients(model, objective, packed)
        assert packed_loss == pytest.approx(loss, rel=1e-4), name
        assert found.keys() == wanted.keys()
        for parameter, gradient in wanted.items():
            off = float((found[parameter] - gradient).norm() / gradient.norm().clamp_min(1e-8))
            assert off < 2e-3, (name, parameter, off)


def test_the_proof_passes_rows_that_part_samples_and_refuses_one_that_does_not() -> None:
    model, reader, samples = make("mamba2")
    chosen = samples[:3]
    [packed] = reader.packed(chosen, WIDTH)
    alone = [reader.batch([sample]) for sample in chosen]
    prove_packing(model, alone, packed)
    kind_BT = packed.token_kind_BT
    packed.inputs["position_ids"] = torch.arange(WIDTH)[None]
    packed.inputs["attention_mask"] = (kind_BT != TOKEN_PAD).long()
    with pytest.raises(
        RunError, match=r"as teacher it gives other hidden states for sample 2 of 3 in a row than alone"
    ):
        prove_packing(model, alone, packed)
