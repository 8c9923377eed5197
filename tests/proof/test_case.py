"""Which tokens of a text are compared at a site, and that a long text costs no square of its length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from linearize.proof.attention import attend
from linearize.proof.calls import SiteCall
from linearize.proof.case import MOST_QUERIES, Case, make_case
from linearize.protocols import AttentionSite
from linearize.testing import MixerConformance
from linearize.testing.mixer_inputs import attention_weights

SITE = replace(MixerConformance.site, has_rope=False)
WEIGHTS = replace(attention_weights(SITE, biases=False, norms=False), rope_theta=None)


def case_of(num_tokens: int, site: AttentionSite, mask: Tensor | None = None) -> Case:
    generator = torch.Generator().manual_seed(0)
    call = SiteCall((torch.randn(1, num_tokens, site.hidden_size, generator=generator),), {"attention_mask": mask})
    call.projected.append(torch.zeros(1, num_tokens, site.num_heads * site.value_dim))
    return make_case(call, site, WEIGHTS, nn.Identity(), row=0, tolerance=1e-4)


def test_a_short_text_is_compared_whole_and_a_long_one_at_both_ends_and_between() -> None:
    assert case_of(MOST_QUERIES, SITE).queries_Q.tolist() == list(range(MOST_QUERIES))
    queries, end = case_of(1000, SITE).queries_Q.tolist(), MOST_QUERIES // 4
    assert (queries[:end], queries[-end:]) == (list(range(end)), list(range(1000 - end, 1000)))
    assert len(queries) <= MOST_QUERIES
    assert max(later - one for one, later in itertools.pairwise(queries)) < 20


@pytest.mark.parametrize(("start", "compared"), [(5, range(5)), (100, range(100)), (1001, None), (None, None)])
def test_tokens_whose_queries_are_sharpened_are_not_compared(start: int | None, compared: range | None) -> None:
    found = case_of(1000, replace(SITE, sharpens_from=start)).queries_Q
    expected = case_of(1000, SITE).queries_Q if compared is None else torch.tensor(compared)
    assert torch.equal(found, expected)


def test_of_a_long_text_with_sharpened_queries_both_ends_before_them_are_compared() -> None:
    found = case_of(1000, replace(SITE, sharpens_from=500)).queries_Q
    assert torch.equal(found, case_of(500, SITE).queries_Q)


@pytest.mark.parametrize("additive", [False, True])
def test_a_site_with_a_mask_of_its_own_is_expected_to_see_what_that_shows(additive: bool) -> None:
    """Against the whole square, at all tokens and at the first ones alone."""
    num_tokens = 300
    sees_BTT = torch.rand(1, num_tokens, num_tokens, generator=torch.Generator().manual_seed(1)) < 0.5
    sees_BTT |= torch.eye(num_tokens, dtype=torch.bool)
    mask = torch.where(sees_BTT, 0.0, -1e9) if additive else sees_BTT
    case = case_of(num_tokens, replace(SITE, own_mask=True), mask[:, None])
    for tokens in (None, 40):
        chosen_Q = case.queries_Q[case.queries_Q < (tokens or num_tokens)]
        expected_BTX = attend(WEIGHTS, case.site, case.x_BTD[:, :tokens], None, sees_BQT=sees_BTT[:, :tokens, :tokens])
        torch.testing.assert_close(case.expected(tokens), expected_BTX[:, chosen_Q])


@pytest.mark.parametrize("own_mask", [False, True])
def test_a_long_text_costs_no_tensor_of_all_pairs_of_its_tokens(own_mask: bool) -> None:
    num_tokens = 2000
    mask = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool).tril() if own_mask else None
    with _sizes_of_new_tensors(mask) as sizes:
        case_of(num_tokens, replace(SITE, own_mask=own_mask), mask).expected()
    assert max(sizes) < num_tokens**2 / 2


@contextmanager
def _sizes_of_new_tensors(known: Tensor | None) -> Iterator[list[int]]:
    """Inside, how many numbers each tensor has that is no view of ``known``."""
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if isinstance(output, Tensor) and (known is None or output.data_ptr() != known.data_ptr()):
                sizes.append(output.numel())
            return output

    with Watch():
        yield sizes
