"""The kit names what is wrong with an adapter's weights: usual mistakes, made on purpose, alone and together."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linearize.proof.attention import attend
from linearize.proof.case import Case
from linearize.proof.diagnosis import explain
from linearize.protocols import AttentionSite, AttentionWeights
from linearize.testing.numbers import positions_of

SITE = AttentionSite(
    index=0, path="layers.0.attention", tower="language", layer=0, cache_index=0,
    hidden_size=20, num_heads=4, num_key_value_heads=2, key_dim=8, value_dim=6,
)  # fmt: skip
R = 4
TOKENS = 30


class Fused(nn.Module):
    """One matrix for q, k and v: for each key-value head its queries, its key, its value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(20, 2 * (2 * 8 + 8 + 6), dtype=torch.float64)


def by_group(rows: Tensor) -> dict[str, Tensor]:
    """The right reading."""
    q, k, v = rows.unflatten(0, (2, -1)).split([16, 8, 6], 1)
    return {"q": q.flatten(0, 1), "k": k.flatten(0, 1), "v": v.flatten(0, 1)}


def value_before_key(rows: Tensor) -> dict[str, Tensor]:
    q, v, k = rows.unflatten(0, (2, -1)).split([16, 6, 8], 1)
    return {"q": q.flatten(0, 1), "k": k.flatten(0, 1), "v": v.flatten(0, 1)}


def in_blocks(rows: Tensor) -> dict[str, Tensor]:
    """All of q, then all of k, then all of v."""
    return dict(zip("qkv", rows.split([32, 16, 12]), strict=True))


MODULE = Fused()


def read(how: Any) -> dict[str, Any]:
    biases = how(MODULE.qkv.bias.detach())
    return how(MODULE.qkv.weight.detach()) | {f"{name}_bias": bias for name, bias in biases.items()}


RIGHT = AttentionWeights(
    **read(by_group), o=torch.randn(20, 24), scale=1 / 8, rope_theta=100.0, rope_style="interleaved"
)


def explained(
    wrong: AttentionWeights, right: AttentionWeights = RIGHT, site: AttentionSite = SITE, module: nn.Module = MODULE
) -> str:
    """What is said about an adapter that gives ``wrong`` where the module computes ``right``."""
    x_BTD = torch.randn(1, TOKENS, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    position = positions_of(torch.arange(TOKENS), R, x_BTD)
    output_BTX = attend(right, site, x_BTD, position)
    case = Case(
        weights=wrong, site=site, attention=module, x_BTD=x_BTD, position=position, output_BTX=output_BTX,
        queries_Q=torch.arange(TOKENS), tolerance=1e-4,
    )  # fmt: skip
    assert not case.fits(), "the mistake changes nothing"
    return explain(case)


def heads(rows: Tensor, order: list[int]) -> Tensor:
    return rows.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def pairs_apart(rows: Tensor) -> Tensor:
    """Numbers 0, 1, 2, 3 of each head to 0, 2, 1, 3, written out."""
    return rows.unflatten(0, (-1, 8))[:, [0, 2, 1, 3, 4, 5, 6, 7]].flatten(0, 1)


GROUPS = "its 2 of q, its k, its v, for one key-value head after the other"
BLOCKS = "all of q, then all of k, then all of v"
TAKEN = f"taken as {GROUPS} (weights(site) takes them as {BLOCKS})"
APART = replace(
    RIGHT, q=pairs_apart(RIGHT.q), k=pairs_apart(RIGHT.k), q_bias=pairs_apart(RIGHT.q_bias),
    k_bias=pairs_apart(RIGHT.k_bias), rope_style="half",
)  # fmt: skip
MISTAKES: dict[str, tuple[AttentionWeights, str]] = {
    "fused rows in blocks": (
        replace(RIGHT, **read(in_blocks)),
        f"It would be right if the rows of the fused matrix were {TAKEN}.",
    ),
    "k and v exchanged in a group": (
        replace(RIGHT, **read(value_before_key)),
        "(weights(site) takes them as its 2 of q, its v, its k, for one key-value head after the other)",
    ),
    "another scale": (
        replace(RIGHT, scale=8**-0.5),
        "It would be right with scale = 1 / site.key_dim (weights(site) says 0.353553).",
    ),
    "other pairs": (
        replace(RIGHT, rope_style="half"),
        'It would be right with a rope_theta and rope_style = "interleaved": this attention turns together numbers 2i',
    ),
    "no rotary embedding": (replace(RIGHT, rope_theta=None), 'with a rope_theta and rope_style = "interleaved"'),
    "pairs moved in q alone": (
        replace(APART, k=RIGHT.k),
        "It would be right with numbers 2i and 2i + 1 moved to i and i + R/2 in each head of k.",
    ),
    "pairs moved in weights, not in biases": (
        replace(APART, q_bias=RIGHT.q_bias, k_bias=RIGHT.k_bias),
        "moved to i and i + R/2 in each head of q_bias, k_bias.",
    ),
    "three at once": (
        replace(RIGHT, **read(in_blocks), scale=1.0, rope_style="half"),
        f"{TAKEN}, and with scale = 1 / site.key_dim (weights(site) says 1), "
        'and with a rope_theta and rope_style = "interleaved"',
    ),
    "biases forgotten": (
        replace(RIGHT, q_bias=None, k_bias=None, v_bias=None),
        "The module has parameters whose numbers are in no tensor of weights(site): qkv.bias.",
    ),
    "query heads that share a key in another order": (
        replace(RIGHT, q=heads(RIGHT.q, [1, 0, 2, 3]), q_bias=heads(RIGHT.q_bias, [1, 0, 2, 3])),
        "Heads 0, 1, ... of the module are heads 1, 0, 2, 3 of weights(site).",
    ),
    "query heads of another key": (
        replace(RIGHT, q=heads(RIGHT.q, [2, 1, 0, 3])),
        "The first token, whose output is its own v, is right.",
    ),
    "keys and values in another order": (
        replace(RIGHT, v=heads(RIGHT.v, [1, 0]), v_bias=heads(RIGHT.v_bias, [1, 0])),
        "query heads 0, 1, ... of the module read key-value heads 1, 1, 0, 0 of weights(site); expected 0, 0, 1, 1.",
    ),
    "values that are none": (
        replace(RIGHT, v=RIGHT.v * 1.5),
        "It is wrong from the first token on, whose output is its own v.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(wrong: AttentionWeights, said: str) -> None:
    assert said in explained(wrong)


def test_a_reading_of_fused_rows_is_one_that_the_adapter_has_taken() -> None:
    """With values as wide as keys, other readings than its own lead to the same rows."""
    site = replace(SITE, value_dim=8)
    module = nn.Module()
    module.qkv = nn.Linear(20, 64, bias=False, dtype=torch.float64)
    rows = module.qkv.weight.detach()
    right = AttentionWeights(
        **dict(zip("qkv", rows.split([32, 16, 16]), strict=True)), o=torch.randn(20, 32), scale=1 / 8, rope_theta=100.0
    )
    wrong = replace(right, **dict(zip("kvq", rows.split([16, 16, 32]), strict=True)))
    said = explained(wrong, right, site, module)
    assert f"taken as {BLOCKS} (weights(site) takes them as all of k, then all of v, then all of q)." in said


def test_moved_pairs_are_as_right_as_neighbours() -> None:
    x_BTD = torch.randn(1, TOKENS, 20, dtype=torch.float64)
    position = positions_of(torch.arange(TOKENS), R, x_BTD)
    neighbours, apart = (attend(weights, SITE, x_BTD, position) for weights in (RIGHT, APART))
    # Both are float64 sums of the same products.
    torch.testing.assert_close(apart, neighbours, rtol=1e-10, atol=1e-10)


def test_an_attention_without_rotary_embedding_is_told_from_one_with() -> None:
    assert "with rope_theta = None" in explained(RIGHT, replace(RIGHT, rope_theta=None))


def test_windows_and_norms_are_tried_as_well() -> None:
    narrow = replace(RIGHT, window=9)
    assert "with window = 9; the query's own token counts" in explained(replace(RIGHT, window=10), narrow)
    assert "with window = None" in explained(narrow, RIGHT)
    normed = replace(RIGHT, q_norm=torch.ones(8), k_norm=torch.ones(8), norm="layer")
    assert 'with norm = "layer"' in explained(replace(normed, norm="rms"), normed)


def test_nothing_is_blamed_without_a_proof() -> None:
    # A wrong v is no mistake that the kit knows; it must not name a scale or an order of rows.
    assert not re.search("It would be right", explained(replace(RIGHT, v=RIGHT.v.flip(1))))
