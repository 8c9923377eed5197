"""What the kit says of a model as a whole."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, MistralConfig, PreTrainedConfig

from linearize.protocols import TOKEN_TEXT, AttentionSite, Batch
from linearize.testing import MixerConformance
from linearize.testing.model_checks import check_cache_slots, check_logits, check_teacher_writes


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


def with_windows(*windows: int | None) -> list[AttentionSite]:
    site = MixerConformance.site
    return [replace(site, index=layer, cache_index=layer, window=window) for layer, window in enumerate(windows)]


ALIKE = MistralConfig(num_hidden_layers=2, sliding_window=6)
BY_LAYER = Gemma2Config(
    num_hidden_layers=2, sliding_window=6, layer_types=["full_attention", "sliding_attention"], head_dim=8
)


@pytest.mark.parametrize(
    ("config", "windows"),
    [(ALIKE, (6, 6)), (BY_LAYER, (None, 6)), (MistralConfig(num_hidden_layers=2, sliding_window=None), (None, 6))],
)
def test_slots_that_reach_as_far_as_their_attention_pass(
    config: PreTrainedConfig, windows: tuple[int | None, ...]
) -> None:
    check_cache_slots(SimpleNamespace(config=config), with_windows(*windows))


@pytest.mark.parametrize(
    ("config", "windows", "said"),
    [
        (ALIKE, (None, 6), r"site 0 .* window = None, but its slot .* last 6 tokens .* no layer_types"),
        (ALIKE, (6, 7), r"site 1 .* window = 7, but its slot .* last 6 tokens"),
        (BY_LAYER, (6, None), r"site 1 .* window = None, .* says sliding_window = 6\. Give"),
    ],
)
def test_a_slot_that_forgets_what_its_attention_sees_is_named(
    config: PreTrainedConfig, windows: tuple[int | None, ...], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        check_cache_slots(SimpleNamespace(config=config), with_windows(*windows))


class Writes:
    """Writes one token; with a cache another one where it is told to, or nothing."""

    def __init__(self, whole: Any, cached: Any) -> None:
        self.tokens = {False: whole, True: cached}

    def generate(self, input_ids: Tensor, generation_config: Any) -> Tensor:
        token = self.tokens[generation_config.use_cache]
        if isinstance(token, Exception):
            raise token
        return torch.cat([input_ids, torch.full_like(input_ids[:, :1], token)], 1)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Writes(1, 2), "writes other tokens with a cache than without"),
        (Writes(1, RuntimeError("size of tensor a")), "with a cache, not without.* RuntimeError: size of tensor a"),
        (Writes(ValueError("['pixel_values']"), 1), r"name there what batch\(\) gives.*ValueError: \['pixel_values'\]"),
    ],
)
def test_a_teacher_that_cannot_write_is_told_from_its_student(model: Any, said: str) -> None:
    ids_BT = torch.arange(10).view(2, 5)
    batch = Batch({"input_ids": ids_BT}, torch.zeros_like(ids_BT).bool(), torch.full_like(ids_BT, TOKEN_TEXT))
    check_teacher_writes(Writes(1, 1), batch, {"max_new_tokens": 1})
    with pytest.raises(AssertionError, match=f"the teacher itself, before anything is converted, .*{said}"):
        check_teacher_writes(model, batch, {"max_new_tokens": 1})
