"""One text at one site: what the attention got and gave, and whether the adapter's words reproduce it.

Letters: B batch, here 1, T tokens, Q those whose output is compared, D model width, N query heads, V value width per
head, R width of a head that turns, X = N*V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearize.proof.attention import attend
from linearize.proof.calls import SiteCall
from linearize.protocols import AttentionSite, AttentionWeights
from linearize.student.state import token_validity

MOST_QUERIES = 128
"""Tokens of a text whose output is compared: the first, the last, and others between."""
MOST_TOKENS = 4096
"""Tokens of a text that are looked at, or twice the site's window where that is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One text at one site, without pads.

    Attributes:
        attention: the module.
        position: cos and sin [1, T, R] as the decoder passes them; None without.
        sees_BQT: bool, the decoder's mask of those tokens; None where it passes none that says it token by token.
        output_BTX: what the module gave before its output projection.
        queries_Q: the tokens that are compared, ascending.
        tolerance: of the largest value.
    """

    weights: AttentionWeights
    site: AttentionSite
    attention: nn.Module
    x_BTD: Tensor
    position: tuple[Tensor, Tensor] | None
    output_BTX: Tensor
    queries_Q: Tensor
    tolerance: float
    sees_BQT: Tensor | None = None

    def expected(self, tokens: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
        """What the adapter says that the first ``tokens`` would give, [1, Q, X]."""
        position = None if self.position is None else (self.position[0][:, :tokens], self.position[1][:, :tokens])
        queries_Q = self._queries(tokens)
        sees_BQT = self.sees_BQT if self.site.own_mask else None
        return attend(
            self.weights,
            self.site,
            self.x_BTD[:, :tokens],
            position,
            sees_BQT=None if sees_BQT is None else sees_BQT[:, : len(queries_Q), :tokens],
            queries_Q=queries_Q,
            dtype=dtype,
        )

    def found(self, tokens: int | None = None) -> Tensor:
        """What the module gave for the same tokens, [1, Q, X], in float64."""
        return self.output_BTX[:, self._queries(tokens)].double()

    def error(self, tokens: int | None = None) -> tuple[float, float]:
        """The largest difference, and the largest value that was expected."""
        expected_BQX = self.expected(tokens)
        return float((self.found(tokens) - expected_BQX).abs().max()), float(expected_BQX.abs().max())

    def fits(self, tokens: int | None = None) -> bool:
        """Whether the adapter's words reproduce the output of the first ``tokens``."""
        furthest, largest = self.error(tokens)
        return furthest <= self.tolerance * max(largest, 1e-6)

    def rounding(self, dtype: torch.dtype) -> float:
        """What the same computation loses in ``dtype``, of the largest value."""
        exact_BQX = self.expected()
        lost = (self.expected(dtype=dtype).double() - exact_BQX).abs().max()
        return float(lost / exact_BQX.abs().max().clamp_min(1e-6))

    def _queries(self, tokens: int | None) -> Tensor:
        return self.queries_Q if tokens is None else self.queries_Q[self.queries_Q < tokens]


def make_case(
    call: SiteCall,
    site: AttentionSite,
    weights: AttentionWeights,
    attention: nn.Module,
    *,
    row: int,
    tolerance: float,
) -> Case:
    """The case that one row of a call is, its pads left out."""
    x_BTD, mask = call.x_BTD, call.kwargs.get("attention_mask")
    num_tokens = x_BTD.shape[1]
    valid_BT = token_validity(mask, num_tokens, 0)
    real_T = torch.ones(num_tokens, dtype=torch.bool) if valid_BT is None else valid_BT[min(row, len(valid_BT) - 1)]
    tokens_T = real_T.nonzero().flatten().to(x_BTD.device)
    if not site.own_mask:  # what comes later changes nothing
        tokens_T = tokens_T[: max(MOST_TOKENS, 2 * (site.window or 0))]
    queries_Q = _spread(len(tokens_T), site).to(x_BTD.device)
    # A site without a rotary embedding may get something else by that name.
    position = call.position if isinstance(call.position, tuple) else None
    return Case(
        weights=weights,
        site=site,
        attention=attention,
        x_BTD=x_BTD[row : row + 1, tokens_T],
        position=None if position is None else (_at(position[0], row, tokens_T), _at(position[1], row, tokens_T)),
        sees_BQT=_sees(mask, row, tokens_T[queries_Q], tokens_T),
        output_BTX=call.projected[0][row : row + 1, tokens_T],
        queries_Q=queries_Q,
        tolerance=tolerance,
    )


def _at(part_BTR: Tensor, row: int, tokens_T: Tensor) -> Tensor:
    row = min(row, len(part_BTR) - 1)
    return part_BTR[row : row + 1, tokens_T]


def _sees(mask: Any, row: int, queries_Q: Tensor, tokens_T: Tensor) -> Tensor | None:
    """Rows of those queries alone: of a long text the whole square would be larger than everything else."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return None
    row = min(row, len(mask) - 1)
    own_BQT = mask[row : row + 1, 0][:, queries_Q][:, :, tokens_T]
    return own_BQT if own_BQT.dtype == torch.bool else own_BQT >= 0


def _spread(num_tokens: int, site: AttentionSite) -> Tensor:
    """Which tokens to compare: a quarter of them the first, a quarter the last, the others evenly between."""
    if site.sharpens_from is not None:
        num_tokens = min(num_tokens, site.sharpens_from)
    if num_tokens <= MOST_QUERIES:
        return torch.arange(num_tokens)
    end = MOST_QUERIES // 4
    between = torch.linspace(end, num_tokens - end, MOST_QUERIES // 2).long()
    return torch.cat([torch.arange(end), between, torch.arange(num_tokens - end, num_tokens)]).unique()
