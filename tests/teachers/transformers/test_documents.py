"""Packed documents in the families: each as if it stood alone, or refused where something looks across."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.support import Family
from test_families import make_student
from torch import Tensor

LENGTHS = (5, 2, 6)
IDS = torch.randint(20, 300, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]

WITH_AXES = {"qwen2_vl", "qwen2_5_vl", "glm4v"}
"""Families whose attention parts documents only by a fourth axis of positions, those of the text."""
RECURRENT_BEFORE = {"qwen3_next", "lfm2", "lfm2_vl", "qwen3_5"}
NAMES = [
    # whose decoder hands no positions to its attention; no keywords; that slide; whose positions have axes; hybrids
    "cohere2", "stablelm", "gemma3", "mistral3", *sorted(WITH_AXES), "qwen3_vl", *sorted(RECURRENT_BEFORE),
]  # fmt: skip


def _apart(model: Any) -> Tensor:
    return torch.cat([model(part, use_cache=False).logits for part in IDS.split(LENGTHS, 1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_packed_documents_are_read_apart_or_refused(adapter: TransformersAdapter, family: Family) -> None:
    for layout in ("all", "every second"):
        model: Any = make_student(adapter, layout).model
        name = family.model_type
        if name in RECURRENT_BEFORE:
            with pytest.raises(ValueError, match="recurrent before it was converted"):
                model(IDS, position_ids=POSITIONS, use_cache=False)
            continue
        positions = POSITIONS
        if name in WITH_AXES and layout == "every second":
            for told in (POSITIONS, POSITIONS.expand(3, 1, -1)):
                with pytest.raises(ValueError, match="would look from one into another"):
                    model(IDS, position_ids=told, use_cache=False)
            positions = POSITIONS.expand(4, 1, -1)
        packed = model(IDS, position_ids=positions, use_cache=False).logits
        # fp32: the same sums in another order.
        torch.testing.assert_close(packed, _apart(model), rtol=1e-4, atol=1e-4)
