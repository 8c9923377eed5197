"""A model's logits from its final hidden states: what it does behind the head is seen, or refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linearize.distill.logits import final_hidden
from linearize.errors import PluginError
from linearize.protocols import TOKEN_TEXT, Batch

Behind = Callable[[Tensor], Tensor]
WIDTH, VOCABULARY, TOKENS = 6, 300, 5


class Bare(nn.Module):
    """A model without a ``base_model``, with tiny logits, that drops out and goes on behind its head by ``behind``."""

    def __init__(self, behind: Behind) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.dropout = nn.Embedding(10, WIDTH), nn.Dropout(0.5)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.behind, self.num_calls = behind, 0

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        self.num_calls += 1
        hidden_BTD = self.dropout(self.embed(input_ids)) * 1e-2
        return SimpleNamespace(logits=self.behind(self.lm_head(hidden_BTD)))


def batch() -> Batch:
    ids_BT = torch.arange(2 * TOKENS).view(2, TOKENS)
    return Batch({"input_ids": ids_BT}, torch.ones_like(ids_BT).bool(), torch.full_like(ids_BT, TOKEN_TEXT))


def mask_one(logits_BTV: Tensor) -> Tensor:
    return logits_BTV.index_fill(-1, torch.tensor([VOCABULARY - 1]), -torch.inf)


@pytest.mark.parametrize(
    "behind",
    [
        lambda logits: logits * 1.001,
        lambda logits: logits.div_(2),
        lambda logits: 30 * torch.tanh(logits / 30),  # at such logits by less than float32 tells apart
        mask_one,
        lambda logits: logits[..., :-1],
        lambda logits: logits[:, -1:],
    ],
    ids=["a factor", "in place", "a soft cap", "one token masked", "fewer tokens known", "the last position"],
)
def test_logits_that_are_changed_behind_the_head_of_a_model_without_a_base_model_are_refused(behind: Behind) -> None:
    with pytest.raises(PluginError, match=r"^this Bare changes logits behind its output projection.*base_model_prefix"):
        final_hidden(Bare(behind), batch())


@pytest.mark.parametrize(
    "behind",
    [
        lambda logits: logits,
        lambda logits: logits * 1.0,
        lambda logits: logits.bfloat16(),
        lambda logits: logits.half(),
    ],
    ids=["nothing", "a factor of one", "to bfloat16", "to float16"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_of_a_model_that_only_casts_gives_its_logits(behind: Behind, dtype: torch.dtype) -> None:
    model = Bare(behind).to(dtype).eval()
    final = final_hidden(model, batch())
    logits_PV = final.to_logits(final.x_BTD.flatten(0, 1))
    expected_BTV = model(**batch().inputs, use_cache=False).logits
    torch.testing.assert_close(logits_PV.to(expected_BTV.dtype), expected_BTV.flatten(0, 1))


def test_a_look_behind_the_head_costs_no_pass_and_no_random_number() -> None:
    model = Bare(lambda logits: logits)
    torch.manual_seed(1)
    model(**batch().inputs, use_cache=False)
    after_one_pass = torch.get_rng_state()
    model.num_calls = 0
    torch.manual_seed(1)
    final_hidden(model, batch())
    assert model.num_calls == 1
    assert torch.equal(torch.get_rng_state(), after_one_pass)


def test_a_model_that_is_looked_at_under_autocast_is_taken() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert final_hidden(Bare(lambda logits: logits.float()), batch()).x_BTD.shape == (2, TOKENS, WIDTH)
