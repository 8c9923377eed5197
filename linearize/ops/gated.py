"""The gated recurrence with one decay per head, in plain torch: the definition that kernel backends must agree with.

    S_t = exp(g_t) S_{t-1} + w_t k_t v_tᵀ        y_t = scale · q_t S_t

Mamba-2's SSD, simple gated linear attention, RetNet and Lightning attention are this recurrence with different g and w.
Letters: B batch, T tokens, N query heads, M key-value heads (query head j reads key-value head j // (N // M)), K key
width, V value width, c chunks, L tokens per chunk. The state S [B, N, K, V] and all decays are fp32 (fp64 for fp64
inputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linearize.ops.autocast import outside_autocast
from linearize.ops.chunks import (
    Resets,
    by_chunk,
    by_token,
    carry_states,
    causal_mask,
    check_shapes,
    in_dtype,
    state_dtype,
    without_tokens,
)
from linearize.ops.decays import chunk_length, head_decays

DEFAULT_CHUNK = 128


def gated_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    g_BTN: Tensor,
    *,
    write_BTN: Tensor | None = None,
    scale: float = 1.0,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """The outputs [B, T, N, V] in q's dtype, and the state [B, N, K, V] after the last token.

    Args:
        g_BTN: log of the decay, at most 0. A token with g = 0 and w = 0 leaves the state alone.
        write_BTN: w, the strength with which a token writes; None: 1.
        state_BNKV: the state before the first token; None: zeros.
        segments_BT: int; where it changes from one token to the next, the state starts anew. The first token always
            goes on from ``state_BNKV``.
        chunk_size: most tokens that one quadratic form covers; changes speed, not the result.

    Raises:
        ValueError: shapes that do not fit together; the text names them.
    """
    per_head = {"g": (g_BTN, False), "write": (write_BTN, False)}
    check_shapes(q_BTNK, k_BTMK, v_BTMV, state_BNKV, segments_BT, per_head)

    if q_BTNK.shape[1] == 0:
        return without_tokens(q_BTNK, v_BTMV.shape[3], state_BNKV)

    def compute(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, write: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if scale != 1.0:
            q = q * scale
        if q.shape[1] == 1:
            y, state = gated_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], None if write is None else write[:, 0], state)
            return y.unsqueeze(1), state
        return _chunked(q, k, v, g, write, state, segments_BT, chunk_size)

    tensors = in_dtype(state_dtype(q_BTNK), q_BTNK, k_BTMK, v_BTMV, g_BTN, write_BTN, state_BNKV)
    y, state = outside_autocast(compute, *tensors)
    return y.to(q_BTNK.dtype), state


def ssd_recurrence(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    dt_BTN: Tensor,
    a_N: Tensor,
    *,
    state_BNKV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's form (arXiv 2405.21060): g = dt · a and w = dt. A token with dt = 0 leaves the state alone.

    Args:
        dt_BTN: time steps, at least 0, after softplus; fp32.
        a_N: one negative number per head; fp32.
    """
    return gated_recurrence(
        q_BTNK, k_BTMK, v_BTMV, dt_BTN * a_N, write_BTN=dt_BTN,
        state_BNKV=state_BNKV, segments_BT=segments_BT, chunk_size=chunk_size,
    )  # fmt: skip


def gated_step(
    q_BNK: Tensor, k_BMK: Tensor, v_BMV: Tensor, g_BN: Tensor, write_BN: Tensor | None, state_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence (scale 1): the output [B, N, V] and the new state."""
    heads = q_BNK.shape[1]
    k_BNK, v_BNV = repeat_heads(k_BMK, heads, 1), repeat_heads(v_BMV, heads, 1)
    if write_BN is not None:
        k_BNK = k_BNK * write_BN.unsqueeze(-1)
    if state_BNKV is None:
        new_BNKV = k_BNK.unsqueeze(-1) * v_BNV.unsqueeze(-2)
    else:
        decayed_BNKV = state_BNKV * g_BN.exp()[..., None, None]
        new_BNKV = decayed_BNKV.addcmul_(k_BNK.unsqueeze(-1), v_BNV.unsqueeze(-2))
    return torch.matmul(q_BNK.unsqueeze(-2), new_BNKV).squeeze(-2), new_BNKV


def repeat_heads(tensor: Tensor, heads: int, dim: int) -> Tensor:
    """Key-value heads along ``dim`` repeated so that there is one for each query head."""
    return tensor if tensor.shape[dim] == heads else tensor.repeat_interleave(heads // tensor.shape[dim], dim)


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    write: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    """All tokens by chunks of equal length: a quadratic form inside each, the recurrence from one to the next."""
    length = q.shape[1]
    per_chunk, is_factored = chunk_length(g, size)
    chunks = -(-length // per_chunk)
    q, k, v, g = (by_chunk(tensor, chunks, per_chunk) for tensor in (q, k, v, g))
    if write is not None:
        write = by_chunk(write, chunks, per_chunk)
    resets = None if segments is None else Resets.of(segments, chunks, per_chunk)
    inside = (_inside_factored if is_factored else _inside_by_matrix)(q, k, v, g, write, resets)

    added_BcNKV = _added(inside.k, inside.to_end, v)
    if chunks == 1 and state is None:
        return by_token(inside.y, length), added_BcNKV[:, 0]
    carry_BcN = inside.total_BcN.exp()
    if resets is not None:
        carry_BcN = carry_BcN * resets.whole_Bc.unsqueeze(-1)
    if state is None:
        state = torch.zeros_like(added_BcNKV[:, 0])
    before_BcNKV, state = carry_states(added_BcNKV, carry_BcN[..., None, None], state)
    y_BcNLV = inside.y + (inside.q @ before_BcNKV) * inside.from_start.unsqueeze(-1)
    return by_token(y_BcNLV, length), state


@dataclass(slots=True)
class _Inside:
    """What happens inside chunks, and what joins them to the rest.

    Attributes:
        y: [B, c, N, L, V], outputs from tokens of the same chunk.
        q, k: [B, c, N, L, K], perhaps scaled; k with the write strength.
        from_start: [B, c, N, L or 1], what ``q`` lacks to read the state before the chunk.
        to_end: [B, c, N, L or 1], what ``k`` lacks to write into the state after the chunk.
        total_BcN: the log of what is left of the state before the chunk after it.
    """

    y: Tensor
    q: Tensor
    k: Tensor
    from_start: Tensor
    to_end: Tensor
    total_BcN: Tensor


def _inside_factored(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, write: Tensor | None, resets: Resets | None
) -> _Inside:
    """The decay from s to t as exp(total_t - middle) on q times exp(middle - total_s) on k: no matrix of decays."""
    total = g.cumsum(-1)
    middle = total[..., -1:] / 2
    q = q * (total - middle).exp().unsqueeze(-1)
    factor = (middle - total).exp()
    k = _scale_heads(k, factor if write is None else factor * write)
    mask = causal_mask(total, total.shape[-1])
    from_start = to_end = middle.exp()
    if resets is not None:
        mask = mask * resets.same_BcLL.unsqueeze(2)
        from_start = from_start * resets.from_start_BcL.unsqueeze(2)
        to_end = to_end * resets.to_end_BcL.unsqueeze(2)
    return _Inside(_MaskedProduct.apply(q, k, v, mask), q, k, from_start, to_end, total[..., -1])


def _inside_by_matrix(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, write: Tensor | None, resets: Resets | None
) -> _Inside:
    """The decays between all pairs as a matrix, however strong."""
    k = _scale_heads(k, torch.ones_like(g) if write is None else write)
    decays = head_decays(g)
    between, from_start, to_end = decays.between, decays.since.exp(), decays.until.exp()
    if resets is not None:
        between = between * resets.same_BcLL.unsqueeze(2)
        from_start = from_start * resets.from_start_BcL.unsqueeze(2)
        to_end = to_end * resets.to_end_BcL.unsqueeze(2)
    scores = q @ k.transpose(-1, -2) * between
    shared = scores.reshape(*v.shape[:3], -1, v.shape[3])
    return _Inside((shared @ v).view(*q.shape[:4], -1), q, k, from_start, to_end, decays.since[..., -1])


class _MaskedProduct(torch.autograd.Function):
    """(q kᵀ ∘ mask) v with v shared by groups of heads; the [L, L] matrices are masked in place, forward and backward.

    On a CPU a fresh matrix costs more than the arithmetic on it, and autograd would make four of them instead of two.
    """

    @staticmethod
    def forward(ctx: Any, q_BcNLK: Tensor, k_BcNLK: Tensor, v_BcMLV: Tensor, mask: Tensor) -> Tensor:
        shape = q_BcNLK.shape
        q, k = (tensor.reshape(-1, *shape[-2:]) for tensor in (q_BcNLK, k_BcNLK))
        v = v_BcMLV.reshape(-1, *v_BcMLV.shape[-2:])
        scores = torch.bmm(q, k.transpose(1, 2))
        scores.view(*shape[:3], shape[3], shape[3]).mul_(mask)
        ctx.save_for_backward(q, k, v, scores, mask)
        ctx.shapes = shape, v_BcMLV.shape
        return torch.bmm(scores.view(v.shape[0], -1, shape[3]), v).view(*shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BcNLV: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, scores, mask = ctx.saved_tensors
        shape, v_shape = ctx.shapes
        dy = dy_BcNLV.reshape(v.shape[0], -1, v.shape[2])
        dscores = torch.bmm(dy, v.transpose(1, 2)).view_as(scores)
        dscores.view(*shape[:3], shape[3], shape[3]).mul_(mask)
        dv = torch.bmm(scores.view(v.shape[0], -1, shape[3]).transpose(1, 2), dy)
        dq, dk = torch.bmm(dscores, k), torch.bmm(dscores.transpose(1, 2), q)
        return dq.view(shape), dk.view(shape), dv.view(v_shape), None


def _added(k_BcNLK: Tensor, to_end_BcNL: Tensor, v_BcMLV: Tensor) -> Tensor:
    """What each chunk adds to the state, as it stands at the chunk's end: [B, c, N, K, V]."""
    batch, chunks, heads, length, key_dim = k_BcNLK.shape
    k = (k_BcNLK * to_end_BcNL.unsqueeze(-1)).transpose(-1, -2)
    shared = k.reshape(batch, chunks, v_BcMLV.shape[2], -1, length) @ v_BcMLV
    return shared.view(batch, chunks, heads, key_dim, -1)


def _scale_heads(k_BcMLK: Tensor, factor_BcNL: Tensor) -> Tensor:
    """k of each query head's group times a factor per query head, [B, c, N, L, K]."""
    groups, heads = k_BcMLK.shape[2], factor_BcNL.shape[2]
    factor = factor_BcNL.unflatten(2, (groups, heads // groups)).unsqueeze(-1)
    return (k_BcMLK.unsqueeze(3) * factor).flatten(2, 3)
