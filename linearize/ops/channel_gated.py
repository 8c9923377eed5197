"""The gated recurrence with one decay per key channel, in plain torch: the definition that kernels must agree with.

    S_t = diag(exp(g_t)) S_{t-1} + w_t k_t v_tᵀ        y_t = scale · q_t S_t

Gated linear attention (GLA), HGRN2 and RWKV-6 without its bonus are this recurrence with different g, k and w.
Letters: B batch, T tokens, N query heads, M key-value heads (query head j reads key-value head j // (N // M)), K key
width, V value width, c chunks, L tokens per chunk. The state S [B, N, K, V] and all decays are fp32 (fp64 for fp64
inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from linearize.ops.autocast import outside_autocast
from linearize.ops.chunks import (
    Resets,
    by_chunk,
    by_token,
    carry_states,
    check_shapes,
    in_dtype,
    state_dtype,
    without_tokens,
)
from linearize.ops.decays import by_factors, by_halves, chunk_length
from linearize.ops.gated import repeat_heads

DEFAULT_CHUNK = 32


def channel_gated_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    g_BTNK: Tensor,
    *,
    write_BTN: Tensor | None = None,
    scale: float = 1.0,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """The outputs [B, T, N, V] in q's dtype, and the state [B, N, K, V] after the last token.

    Args:
        g_BTNK: log of the decay of each row of the state, at most 0. A token with g = 0 and w = 0 leaves the state
            alone.
        write_BTN: w, the strength with which a token writes; None: 1.
        state_BNKV: the state before the first token; None: zeros.
        segments_BT: int; where it changes from one token to the next, the state starts anew. The first token always
            goes on from ``state_BNKV``.
        chunk_size: most tokens that one quadratic form covers; changes speed, not the result.

    Raises:
        ValueError: shapes that do not fit together; the text names them.
    """
    per_query_head = {"g": (g_BTNK, True), "write": (write_BTN, False)}
    check_shapes(q_BTNK, k_BTMK, v_BTMV, state_BNKV, segments_BT, per_query_head)

    if q_BTNK.shape[1] == 0:
        return without_tokens(q_BTNK, v_BTMV.shape[3], state_BNKV)

    def compute(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, write: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        k, v = (repeat_heads(tensor, q.shape[2], 2) for tensor in (k, v))
        if scale != 1.0:
            q = q * scale
        if write is not None:
            k = k * write.unsqueeze(-1)
        if q.shape[1] == 1:
            y, state = channel_gated_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], state)
            return y.unsqueeze(1), state
        return _chunked(q, k, v, g, state, segments_BT, chunk_size)

    tensors = in_dtype(state_dtype(q_BTNK), q_BTNK, k_BTMK, v_BTMV, g_BTNK, write_BTN, state_BNKV)
    y, state = outside_autocast(compute, *tensors)
    return y.to(q_BTNK.dtype), state


def channel_gated_step(
    q_BNK: Tensor, k_BNK: Tensor, v_BNV: Tensor, g_BNK: Tensor, state_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence (scale and write strength 1): the output [B, N, V] and the new state."""
    new_BNKV = k_BNK.unsqueeze(-1) * v_BNV.unsqueeze(-2)
    if state_BNKV is not None:
        new_BNKV = torch.addcmul(new_BNKV, state_BNKV, g_BNK.exp().unsqueeze(-1))
    return torch.matmul(q_BNK.unsqueeze(-2), new_BNKV).squeeze(-2), new_BNKV


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, segments: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """All tokens by chunks of equal length: a quadratic form inside each, the recurrence from one to the next."""
    length = q.shape[1]
    per_chunk, is_factored = chunk_length(g, size)
    chunks = -(-length // per_chunk)
    q, k, v, g = (by_chunk(tensor, chunks, per_chunk) for tensor in (q, k, v, g))
    decayed = (by_factors if is_factored else by_halves)(q.unsqueeze(3), k, g)
    if segments is not None:
        decayed = decayed.reset(Resets.of(segments, chunks, per_chunk))
    y_BcNLV = decayed.scores.squeeze(3) @ v
    added_BcNKV = decayed.to_end.transpose(-1, -2) @ v
    if chunks == 1 and state is None:
        return by_token(y_BcNLV, length), added_BcNKV[:, 0]
    if state is None:
        state = torch.zeros_like(added_BcNKV[:, 0])
    before_BcNKV, state = carry_states(added_BcNKV, decayed.carry, state)
    return by_token(y_BcNLV + decayed.from_start.squeeze(3) @ before_BcNKV, length), state
