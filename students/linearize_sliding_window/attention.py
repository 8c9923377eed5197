"""Softmax attention over the last W tokens, and the first n, in time and memory linear in T.

A sequence is cut into blocks of L queries; the keys of a block are the L + W - 1 tokens that its queries can see. No
T x T matrix exists. A later call needs the last W - 1 keys and values alone, so the state has one size.

Positions count the tokens of a call from 0, pads left out; what an earlier call saw has negative ones.
Letters: B batch, T tokens, N query heads, M key-value heads (query head j reads key-value head j // G, G = N // M), K
key width, V value width, X either width, W window, H tokens of history, n sinks, c blocks, L queries of a block, S keys
of a block, E all keys at hand: n first ones, H before this call, T of it, and zeros that fill the last block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, float, float | None], Tensor]
SMALLEST_BLOCK, LARGEST_BLOCK = 32, 256
"""Queries of a block: as many as the window, within these. Speed, not results."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of the tokens so far; slots without a token hold anything finite.

    Attributes:
        keys: [B, W - 1, M, K], newest last. values: [B, W - 1, M, V].
        sink_keys: [B, n, M, K], the first ones of the document. sink_values: [B, n, M, V].
        count_B: int64, tokens of the document.
    """

    keys: Tensor
    values: Tensor
    sink_keys: Tensor
    sink_values: Tensor
    count_B: Tensor


def windowed_attention(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    *,
    window: int,
    sinks: int,
    scale: float,
    softcap: float | None = None,
    valid_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
    seen: Seen | None = None,
    attention: Attention | None = None,
) -> tuple[Tensor, Seen]:
    """The output [B, T, N, V], and what the next call needs to know.

    Args:
        window: W, tokens that a query sees, its own included.
        sinks: n, first tokens of a document that its queries see besides.
        softcap: scores s become softcap * tanh(s / softcap).
        valid_BT: bool; a False token is seen by no other and leaves no trace; its own output is finite.
        segments_BT: int; where it changes, a document begins that sees none before it. The first token always goes on
            from ``seen``.
        attention: what a query makes of the keys that it sees; None: ``attend``.
    """
    attention = attention or attend
    tokens = _Tokens.of(k_BTMK, valid_BT, segments_BT, seen)
    q, k, v = (tokens.in_order(part) for part in (q_BTNK, k_BTMK, v_BTMV))
    length = k.shape[1]
    # Nothing was before a first call, so its keys reach back to its first token at most.
    history = window - 1 if seen is not None else min(window, length) - 1
    blocks = _Blocks(length, min(length, max(SMALLEST_BLOCK, min(window, LARGEST_BLOCK))), history, window, sinks)
    keys_BEMK = blocks.extend(k, None if seen is None else (seen.sink_keys, seen.keys))
    values_BEMV = blocks.extend(v, None if seen is None else (seen.sink_values, seen.values))
    mask_XLS, sinks_at = blocks.mask(tokens.first_BT, len(k)), blocks.sinks_at(tokens.first_BT)
    y_BTNV = attention(
        blocks.queries(q, k.shape[2]), blocks.keys(keys_BEMK, sinks_at), blocks.keys(values_BEMV, sinks_at), mask_XLS,
        scale, softcap,
    )  # fmt: skip
    after = Seen(
        keys=blocks.last(keys_BEMK, tokens.end_B), values=blocks.last(values_BEMV, tokens.end_B),
        sink_keys=blocks.first(keys_BEMK, tokens.last_first_B),
        sink_values=blocks.first(values_BEMV, tokens.last_first_B), count_B=tokens.count_B,
    )  # fmt: skip
    return tokens.as_given(blocks.outputs(y_BTNV, len(k))), after


def attend(
    q_XMGLK: Tensor, k_XSMK: Tensor, v_XSMV: Tensor, mask_XLS: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Softmax attention within each block X of each row: [X, M, G, L, V].

    The queries that share a key stand below one another, so that no key is copied for them.
    """
    groups = q_XMGLK.shape[2]
    q, k, v = q_XMGLK.flatten(2, 3), k_XSMK.transpose(1, 2), v_XSMV.transpose(1, 2)
    mask = mask_XLS.repeat(1, groups, 1).unsqueeze(1)
    if softcap is None:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    else:
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap))
        shares = scores.masked_fill(~mask, -torch.inf).softmax(-1, torch.promote_types(q.dtype, torch.float32))
        y = shares.to(v.dtype) @ v
    return y.unflatten(2, (groups, -1))


def attend_to_sums(
    q_XMGLK: Tensor, k_XSMK: Tensor, v_XSMV: Tensor, mask_XLS: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """What softmax divides and what it divides by, [X, M, G, L, V + 1], at least fp32; the largest weight is 1."""
    groups, dtype = q_XMGLK.shape[2], torch.promote_types(q_XMGLK.dtype, torch.float32)
    with torch.autocast(q_XMGLK.device.type, enabled=False):
        q, k, v = (x.to(dtype) for x in (q_XMGLK.flatten(2, 3), k_XSMK.transpose(1, 2), v_XSMV.transpose(1, 2)))
        scores = q @ k.transpose(-1, -2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask_XLS.repeat(1, groups, 1).unsqueeze(1), -torch.inf)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        y = weights @ F.pad(v, (0, 1), value=1.0)
    return y.unflatten(2, (groups, -1))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a call, pads behind all others, so that the window counts tokens and not places.

    Attributes:
        order: where each token stood before, in the flattened batch, and the inverse of that; None: they stay.
        first_BT: position of the first token of each token's document; [1, 1] where all are alike.
        end_B: tokens of each row that are no pads; None: all T.
        count_B: tokens of each row's last document, earlier calls included.
        last_first_B: position of that document's first token.
    """

    order: tuple[Tensor, Tensor] | None
    first_BT: Tensor
    end_B: Tensor | None
    count_B: Tensor
    last_first_B: Tensor

    @classmethod
    def of(cls, k_BTMK: Tensor, valid_BT: Tensor | None, segments_BT: Tensor | None, seen: Seen | None) -> _Tokens:
        batch, length = k_BTMK.shape[:2]
        device = k_BTMK.device
        before_B = torch.zeros(batch, dtype=torch.int64, device=device) if seen is None else seen.count_B
        end_B = None if valid_BT is None else valid_BT.sum(1)
        order = None
        if valid_BT is not None and length > 1:
            order_BT = (~valid_BT).to(torch.uint8).argsort(dim=1, stable=True)
            row_B1 = torch.arange(batch, device=device).unsqueeze(1) * length
            order = (order_BT + row_B1).flatten(), (order_BT.argsort(1) + row_B1).flatten()
        if segments_BT is None:
            count_B = before_B + (length if end_B is None else end_B)
            first_BT = torch.zeros(1, 1, dtype=torch.int64, device=device) if seen is None else -before_B.unsqueeze(1)
            return cls(order, first_BT, end_B, count_B, -before_B)
        document_BT = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0)).cumsum(1)
        goes_on_B = document_BT[:, -1] == 0
        in_last_BT = document_BT == document_BT[:, -1:]
        added_B = (in_last_BT if valid_BT is None else in_last_BT & valid_BT).sum(1)
        count_B = added_B + torch.where(goes_on_B, before_B, 0)
        if order is not None:
            document_BT = document_BT.flatten()[order[0]].view_as(document_BT)
        begins_BT = F.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0))
        start_BT = torch.where(begins_BT, torch.arange(length, device=device), 0).cummax(1).values
        first_BT = torch.where(document_BT == 0, -before_B.unsqueeze(1), start_BT)
        return cls(order, first_BT, end_B, count_B, (length if end_B is None else end_B) - count_B)

    def in_order(self, x_BTHX: Tensor) -> Tensor:
        """Pads to the end."""
        return x_BTHX if self.order is None else _Permuted.apply(x_BTHX, *self.order)

    def as_given(self, x_BTHX: Tensor) -> Tensor:
        """Pads back to their places."""
        return x_BTHX if self.order is None else _Permuted.apply(x_BTHX, *reversed(self.order))


class _Permuted(torch.autograd.Function):
    """Tokens in another order; the gradient is the inverse order, which needs no sum over indices."""

    @staticmethod
    def forward(ctx: Any, x_BTHX: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x_BTHX.flatten(0, 1).index_select(0, order).view(x_BTHX.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, inverse).view(gradient.shape), None, None


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where queries and keys stand when T tokens are cut into blocks of ``size``, the last one filled up."""

    length: int
    size: int
    history: int
    window: int
    sinks: int

    @property
    def number(self) -> int:
        """c."""
        return -(-self.length // self.size)

    def _fill(self, x_BTHX: Tensor) -> Tensor:
        return F.pad(x_BTHX, (0, 0, 0, 0, 0, self.number * self.size - self.length))

    def extend(self, x_BTMX: Tensor, before: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, E, M, X]; ``before`` are those of sinks and of history, and none are zeros."""
        if before is None:
            return F.pad(self._fill(x_BTMX), (0, 0, 0, 0, self.sinks + self.history, 0))
        return torch.cat([*before, self._fill(x_BTMX)], 1)

    def queries(self, q_BTNK: Tensor, groups: int) -> Tensor:
        """[B·c, M, G, L, K]."""
        q = self._fill(q_BTNK).unflatten(2, (groups, -1)).unflatten(1, (self.number, self.size))
        return q.permute(0, 1, 3, 4, 2, 5).flatten(0, 1)

    def outputs(self, y_XMGLV: Tensor, batch: int) -> Tensor:
        """[B, T, N, V] of what ``attend`` gave."""
        y = y_XMGLV.unflatten(0, (batch, self.number)).permute(0, 1, 4, 2, 3, 5)
        return y.flatten(3, 4).flatten(1, 2)[:, : self.length]

    def keys(self, x_BEMX: Tensor, sinks_at: Tensor | None) -> Tensor:
        """The keys of each block, [B·c, S, M, X]: the sinks that ``sinks_at`` [B, c, ·] names, and the window's."""
        device = x_BEMX.device
        start_c1 = torch.arange(self.number, device=device).unsqueeze(1) * self.size + self.sinks
        at_cS = start_c1 + torch.arange(self.history + self.size, device=device)
        x = x_BEMX.index_select(1, at_cS.flatten()).unflatten(1, (self.number, -1))
        if sinks_at is not None:
            x = torch.cat([_pick(x_BEMX, sinks_at.flatten(1)).unflatten(1, sinks_at.shape[1:]), x], 2)
        return x.flatten(0, 1)

    def mask(self, first_BT: Tensor, batch: int) -> Tensor:
        """Which of its block's keys a query sees, [B·c, L, S]; each sees itself."""
        query_cL1 = torch.arange(self.number * self.size, device=first_BT.device).view(self.number, self.size, 1)
        key_c1S = query_cL1[:, :1] + torch.arange(-self.history, self.size, device=first_BT.device)
        is_per_token = first_BT.shape[1] > 1
        if is_per_token:
            first_BT = F.pad(first_BT, (0, self.number * self.size - self.length)).unflatten(1, (self.number, -1))
        else:
            first_BT = first_BT.unsqueeze(1)
        first_BcL1 = first_BT.unsqueeze(-1)
        mask = (key_c1S <= query_cL1) & (key_c1S > query_cL1 - self.window) & (key_c1S >= first_BcL1)
        if self.sinks:
            sink_BcLn = first_BcL1 + torch.arange(self.sinks, device=first_BT.device)
            sink_mask = sink_BcLn <= query_cL1 - self.window
            if is_per_token:
                own_LL1 = torch.eye(self.size, dtype=torch.bool, device=first_BT.device).unsqueeze(-1)
                sink_mask = (sink_mask.unsqueeze(-2) & own_LL1).flatten(-2)
            mask = torch.cat([sink_mask.expand(*mask.shape[:3], -1), mask], -1)
        return mask.expand(batch, -1, -1, -1).flatten(0, 1)

    def sinks_at(self, first_BT: Tensor) -> Tensor | None:
        """Where the sinks of each block's documents stand in E: [B or 1, c, n], or n for each of its queries."""
        if not self.sinks:
            return None
        at_BPn = self._at(first_BT)
        if first_BT.shape[1] == 1:
            return at_BPn.expand(-1, self.number, -1)
        fill = self.number * self.size - self.length
        return F.pad(at_BPn, (0, 0, 0, fill)).unflatten(1, (self.number, -1)).flatten(2)

    def _at(self, first_BP: Tensor) -> Tensor:
        """Where in E the n tokens from a position on stand; of an earlier call's, those of the document's beginning."""
        sink_n = torch.arange(self.sinks, device=first_BP.device)
        position_BPn = first_BP.unsqueeze(-1) + sink_n
        at_BPn = torch.where(position_BPn < 0, sink_n, position_BPn + self.sinks + self.history)
        return at_BPn.clamp(max=self.sinks + self.history + self.length - 1)

    def last(self, x_BEMX: Tensor, end_B: Tensor | None) -> Tensor:
        """The W - 1 tokens before position ``end_B``; None: the last ones."""
        kept = self.window - 1
        x = x_BEMX[:, self.sinks : self.sinks + self.history + self.length]
        x = F.pad(x, (0, 0, 0, 0, kept - self.history, 0))
        if end_B is None:
            return x[:, x.shape[1] - kept :]
        return _pick(x, end_B.unsqueeze(1) + torch.arange(kept, device=x.device))

    def first(self, x_BEMX: Tensor, first_B: Tensor) -> Tensor:
        """The n tokens from position ``first_B`` on."""
        return _pick(x_BEMX, self._at(first_B.unsqueeze(1)).squeeze(1)) if self.sinks else x_BEMX[:, :0]


def _pick(x_BEMX: Tensor, at_BP: Tensor) -> Tensor:
    """Tokens of each row by their place."""
    at_BP11 = at_BP.expand(len(x_BEMX), -1)[..., None, None]
    return x_BEMX.gather(1, at_BP11.expand(-1, -1, *x_BEMX.shape[2:]))
