"""The delta rule with and without decay, in plain torch: the definition that kernel backends must agree with.

    S_t = exp(g_t) S_{t-1} + β_t k_t (v_t - k_tᵀ exp(g_t) S_{t-1})ᵀ        y_t = scale · q_t S_t

What a key reads from the decayed state is replaced by its value, with strength β. Without g this is DeltaNet
(arXiv 2406.06484), with one decay per head Gated DeltaNet (2412.06464), with one per key channel Kimi Delta Attention
(KDA, 2510.26692). Keys are expected at unit length and β in 0 .. 2; beyond, the recurrence itself grows without bound.

A chunk is solved at once (2406.06484, section 3): its corrections U, one row per token, obey

    (I + A) U = β V - W S        A[t, s] = β_t k_tᵀ decay(s to t) k_s for s < t        W_t = β_t k_t decay(start to t)

with S the state before the chunk; after that, U are the values of a gated recurrence.
Letters: B batch, T tokens, N query heads, M key-value heads (query head j reads key-value head j // (N // M)), K key
width, V value width, c chunks, L tokens per chunk. The state S [B, N, K, V] and all decays are fp32 (fp64 for fp64
inputs).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from linearize.ops.autocast import outside_autocast
from linearize.ops.chunks import (
    Resets,
    by_chunk,
    by_token,
    check_shapes,
    even_length,
    in_dtype,
    state_dtype,
    without_tokens,
)
from linearize.ops.decays import Decayed, by_factors, by_halves, chunk_length, halved_length, per_head, without_decay
from linearize.ops.gated import repeat_heads

DEFAULT_CHUNK = 32


def delta_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    beta_BTN: Tensor,
    g: Tensor | None = None,
    *,
    scale: float = 1.0,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """The outputs [B, T, N, V] in q's dtype, and the state [B, N, K, V] after the last token.

    Args:
        beta_BTN: β, the strength with which a token writes.
        g: log of the decay, at most 0: [B, T, N], or [B, T, N, K] with one for each row of the state; None: no decay.
            A token with g = 0 and β = 0 leaves the state alone.
        state_BNKV: the state before the first token; None: zeros.
        segments_BT: int; where it changes from one token to the next, the state starts anew. The first token always
            goes on from ``state_BNKV``.
        chunk_size: most tokens that are solved at once; changes speed, not the result.

    Raises:
        ValueError: shapes that do not fit together; the text names them.
    """
    is_per_channel = g is not None and g.dim() == 4
    per_query_head = {"beta": (beta_BTN, False), "g": (g, is_per_channel)}
    check_shapes(q_BTNK, k_BTMK, v_BTMV, state_BNKV, segments_BT, per_query_head)

    if q_BTNK.shape[1] == 0:
        return without_tokens(q_BTNK, v_BTMV.shape[3], state_BNKV)

    def compute(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        k, v = (repeat_heads(tensor, q.shape[2], 2) for tensor in (k, v))
        if scale != 1.0:
            q = q * scale
        if q.shape[1] == 1:
            y, state = delta_step(q[:, 0], k[:, 0], v[:, 0], beta[:, 0], None if g is None else g[:, 0], state)
            return y.unsqueeze(1), state
        return _chunked(q, k, v, beta, g, state, segments_BT, chunk_size)

    tensors = in_dtype(state_dtype(q_BTNK), q_BTNK, k_BTMK, v_BTMV, beta_BTN, g, state_BNKV)
    y, state = outside_autocast(compute, *tensors)
    return y.to(q_BTNK.dtype), state


def delta_step(
    q_BNK: Tensor, k_BNK: Tensor, v_BNV: Tensor, beta_BN: Tensor, g: Tensor | None, state_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence (scale 1): the output [B, N, V] and the new state; g is [B, N] or [B, N, K]."""
    written_BNV = v_BNV
    if state_BNKV is not None:
        if g is not None:
            decay = g.exp()
            state_BNKV = state_BNKV * (decay.unsqueeze(-1) if g.dim() == 3 else decay[..., None, None])
        written_BNV = v_BNV - torch.matmul(k_BNK.unsqueeze(-2), state_BNKV).squeeze(-2)
    new_BNKV = (beta_BN.unsqueeze(-1) * k_BNK).unsqueeze(-1) * written_BNV.unsqueeze(-2)
    if state_BNKV is not None:
        new_BNKV = new_BNKV + state_BNKV
    return torch.matmul(q_BNK.unsqueeze(-2), new_BNKV).squeeze(-2), new_BNKV


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    """All tokens by chunks of equal length: a triangular system inside each, the recurrence from one to the next."""
    length = q.shape[1]
    if g is not None and g.dim() == 4:
        per_chunk, is_factored = chunk_length(g, size)
        decay: Callable[..., Decayed] = by_factors if is_factored else by_halves
    else:
        per_chunk = even_length(length, size) if g is None else halved_length(length, size)
        decay = per_head
    chunks = -(-length // per_chunk)
    q, k, v, beta = (by_chunk(tensor, chunks, per_chunk) for tensor in (q, k, v, beta))
    beta = beta.unsqueeze(-1)
    readers = torch.stack([q, beta * k], 3)
    decayed = without_decay(readers, k) if g is None else decay(readers, k, by_chunk(g, chunks, per_chunk))
    if segments is not None:
        decayed = decayed.reset(Resets.of(segments, chunks, per_chunk))
    scores, system = decayed.scores.unbind(3)
    q_from_start, k_from_start = decayed.from_start.unbind(3)
    # What stands on and above the system's diagonal is not read.
    solved = torch.linalg.solve_triangular(
        system, torch.cat([beta * v, k_from_start], -1), upper=False, unitriangular=True
    )
    if state is None:
        state = q.new_zeros(*q.shape[:1], q.shape[2], q.shape[-1], v.shape[-1])
    written, before, state = _carry(solved, decayed, state)
    return by_token(scores @ written + q_from_start @ before, length), state


def _carry(solved: Tensor, decayed: Decayed, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each token writes, the state before each chunk, and the state after the last.

    Args:
        solved: [B, c, N, L, V + K], the corrections of an empty state, and how much of the state's rows they replace.
    """
    value_dim = state.shape[-1]
    written, before = [], []
    parts = (solved[..., :value_dim], solved[..., value_dim:], decayed.to_end.transpose(-1, -2), decayed.carry)
    for values, read, k_to_end, kept in zip(*(part.unbind(1) for part in parts), strict=True):
        before.append(state)
        written.append(values - read @ state)
        state = torch.addcmul(k_to_end @ written[-1], state, kept)
    return torch.stack(written, 1), torch.stack(before, 1), state
