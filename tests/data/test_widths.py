"""Rows padded to few lengths give the same loss and gradients."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from linearize.api import check
from linearize.data.samples import SampleReader
from linearize.distill.objectives import LayerMse, LogitKl
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.distill.seeding import seed_student
from linearize.protocols import TOKEN_PAD, TextRow
from linearize.student.convert import linearized_sites

RECIPE = Path(__file__).parents[2] / "examples" / "mmmamba_hovle.toml"


@pytest.fixture(scope="module")
def student() -> tuple[Any, Any, Any]:
    """The demo's student, its adapter and data."""
    torch.set_num_threads(1)
    checked = check(RECIPE, {"evaluate.benchmarks": []})
    model = checked.adapter.load(dtype=torch.float32, device="cpu")
    seed_student(model, checked.adapter, checked.recipe, checked.plan, torch.device("cpu"))
    return model, checked.adapter, checked.source


def gradients(student: Any, objective: Any, multiple: int | None) -> tuple[float, dict[str, torch.Tensor], list[int]]:
    model, adapter, source = student
    reader = SampleReader(adapter)
    samples = [*(source[index] for index in range(4)), TextRow([5, 6, 7, 8, 9])]
    batches = reader.batches(samples, max_padding=1.0, max_tokens=10_000, multiple=multiple)
    slots = linearized_sites(model)
    model.requires_grad_(False)
    for slot in slots:
        slot.mixer.requires_grad_(True)  # type: ignore[union-attr]
    model.zero_grad()
    weight = sum(objective.weight(batch) for batch in batches)
    loss = sum(float(objective.backward(model, batch, range(len(slots)), weight).loss) for batch in batches)
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss, found, [batch.token_kind_BT.shape[1] for batch in batches]


@pytest.mark.parametrize("objective", [LayerMse(LayerMseConfig()), LogitKl(LogitKlConfig(hidden_weight=0.5))])
def test_loss_and_gradients_are_those_of_rows_that_are_padded_as_little_as_possible(
    student: Any, objective: Any
) -> None:
    loss, wanted, widths = gradients(student, objective, None)
    wide_loss, found, wide = gradients(student, objective, 32)
    assert [width % 32 for width in wide] == [0, 0]
    assert widths != wide
    assert wide_loss == pytest.approx(loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # fp32: the same sums in another order.
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_many_lengths_become_few(student: Any) -> None:
    reader, draw = SampleReader(student[1]), random.Random(0)
    widths: dict[int | None, set[int]] = {None: set(), 64: set()}
    for _ in range(40):
        rows = [TextRow([7] * draw.randint(2, 256)) for _ in range(16)]
        for multiple, seen in widths.items():
            batches = reader.batches(rows, max_padding=0.25, max_tokens=512, multiple=multiple)
            seen |= {batch.token_kind_BT.shape[1] for batch in batches}
            assert sum(int((batch.token_kind_BT != TOKEN_PAD).sum()) for batch in batches) == sum(
                len(row.ids) for row in rows
            )
            assert max(batch.token_kind_BT.numel() for batch in batches) <= 512
    assert widths[64] == {64, 128, 192, 256}
    assert len(widths[None]) > 60
