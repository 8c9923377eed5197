"""What the kit says of a model as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linearize.protocols import TOKEN_TEXT, Batch
from linearize.testing.model_checks import check_logits


class Named(nn.Module):
    """Says what runs before its head and multiplies logits behind it; a row's first ones once more, by ``first``."""

    def __init__(self, first: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base_model, self.lm_head, self.first = nn.Embedding(10, 6), nn.Linear(6, 10), first

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        logits_BTV = self.lm_head(self.base_model(input_ids)) * 3
        return SimpleNamespace(logits=torch.cat([logits_BTV[:, :1] * self.first, logits_BTV[:, 1:]], 1))


def test_a_model_that_changes_logits_by_their_place_is_told_from_one_that_changes_all_alike() -> None:
    ids_BT = torch.arange(10).view(2, 5)
    batch = Batch({"input_ids": ids_BT}, torch.ones_like(ids_BT).bool(), torch.full_like(ids_BT, TOKEN_TEXT))
    check_logits(Named(first=1.0), batch, 1e-4)
    with pytest.raises(AssertionError, match="run again from its final hidden states, the model gives other logits"):
        check_logits(Named(first=2.0), batch, 1e-4)
