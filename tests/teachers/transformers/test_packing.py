"""Samples in one row of a family's input: each as if it stood alone, teacher and student, or refused by check."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.packed import PICTURES
from linearize_transformers.support import Family
from PIL import Image
from test_families import make_student

from linearize.data.samples import SampleReader
from linearize.distill.objectives import LayerMse, LogitKl
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.distill.rehearsal import prove_packing
from linearize.protocols import Batch, Conversation, Sample, TextRow, Turn
from linearize.student.convert import linearized_sites

TEXT = ["llama", "gpt_neox", "mistral", "gemma3_text", "cohere2"]
"""Plain, with biases, and with windows that slide."""
REFUSED = {
    "paligemma": "both directions", "mllama": "pictures of several samples", "fuyu": "pictures of several samples",
    "qwen3_next": "recurrent layers", "lfm2": "recurrent layers",
}  # fmt: skip


def samples(adapter: TransformersAdapter) -> list[Sample]:
    """Pictures of two sizes, two in one conversation, none, and a row of text."""
    first = Turn("how many are red?", "two green")
    texts: list[Sample] = [
        Conversation((first,)),
        TextRow([20, 31, 42]),
        Conversation((Turn("and blue?", "one"), first)),
    ]
    if not adapter.takes_images:
        return texts
    small, wide = Image.new("RGB", (40, 28), (200, 30, 30)), Image.new("RGB", (64, 30), (20, 230, 30))
    asked = Turn("<image>\nhow many red?", "two")
    both = Turn("<image>\n<image>\nwhich is green?", "the second")
    pictures: list[Sample] = [Conversation((asked, first), (small,)), Conversation((both,), (wide, small))]
    return [pictures[0], *texts, pictures[1]]


def gradients(model: Any, objective: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.requires_grad_(False)
    slots = [slot for slot in linearized_sites(model) if slot.mixer is not None]
    for slot in slots:
        slot.mixer.requires_grad_(True)  # type: ignore[union-attr]
    model.zero_grad()
    weight, sites = sum(map(objective.weight, batches)), [slot.site.index for slot in slots]
    loss = sum(float(objective.backward(model, batch, sites, weight).loss) for batch in batches)
    return loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TEXT, *PICTURES], indirect=True)
def test_packed_samples_give_what_they_give_alone(adapter: TransformersAdapter, family: Family) -> None:
    assert adapter.packing_obstacle() == ""
    model = make_student(adapter, "every second").model
    reader = SampleReader(adapter)
    chosen = samples(adapter)
    width = sum(map(reader.num_tokens, chosen)) + 5
    alone, [packed] = [reader.batch([one]) for one in chosen], reader.packed(chosen, width)
    prove_packing(model, alone, packed)
    for objective in (LayerMse(LayerMseConfig()), LogitKl(LogitKlConfig(hidden_weight=0.5))):
        loss, wanted = gradients(model, objective, alone)
        packed_loss, found = gradients(model, objective, [packed])
        assert packed_loss == pytest.approx(loss, rel=1e-3)
        for name, gradient in wanted.items():
            # fp32: the same sums in another order.
            assert float((found[name] - gradient).norm() / gradient.norm().clamp_min(1e-8)) < 5e-3, name


@pytest.mark.parametrize("family", REFUSED, indirect=True)
def test_what_cannot_be_packed_says_why(adapter: TransformersAdapter, family: Family) -> None:
    assert REFUSED[family.model_type] in adapter.packing_obstacle()
