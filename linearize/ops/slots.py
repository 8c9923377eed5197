"""Gated slot attention (arXiv 2409.07146), in plain torch: the definition that kernels must agree with.

    K_t = K_{t-1} diag(exp(g_t)) + k_t w_tᵀ        p_t = softmax(scale · q_t K_t)
    V_t = diag(exp(g_t)) V_{t-1} + w_t v_tᵀ        y_t = p_t V_t

A query reads S slots as softmax attention reads tokens; each slot holds a key and a value that fade and are written to.
The second pass is the channel-gated recurrence. The first is not: it decays what a key writes, not what a query reads,
so its decays stand outside the products of queries and keys.
Letters: B batch, T tokens, N query heads, M key-value heads (query head j reads the slots of head j // (N // M)), K key
width, V value width, S slots, c chunks, L tokens per chunk. States and decays are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linearize.ops.autocast import outside_autocast
from linearize.ops.channel_gated import channel_gated_recurrence
from linearize.ops.chunks import Resets, by_chunk, by_token, carry_states, causal_mask, in_dtype, state_dtype
from linearize.ops.decays import chunk_length
from linearize.ops.gated import repeat_heads

DEFAULT_CHUNK = 32


def slot_attention(
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    write_BTMS: Tensor,
    g_BTMS: Tensor,
    *,
    scale: float = 1.0,
    slot_keys_BMKS: Tensor | None = None,
    slot_values_BMSV: Tensor | None = None,
    segments_BT: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs [B, T, N, V] in q's dtype, and keys [B, M, K, S] and values [B, M, S, V] of the slots after them.

    Args:
        write_BTMS: w, the strength with which a token writes to each slot.
        g_BTMS: log of what a slot keeps, at most 0. A token with g = 0 and w = 0 leaves the slots alone.
        slot_keys_BMKS, slot_values_BMSV: the slots before the first token; None: zeros.
        segments_BT: int; where it changes from one token to the next, the slots start empty. The first token always
            goes on from the slots that are given.
        chunk_size: most tokens that one quadratic form covers; changes speed, not the result.

    Raises:
        ValueError: shapes that do not fit together; the text names them.
    """
    _check_shapes(q_BTNK, k_BTMK, v_BTMV, write_BTMS, g_BTMS, slot_keys_BMKS, slot_values_BMSV, segments_BT)
    if q_BTNK.shape[1] == 0:
        return _without_tokens(q_BTNK, v_BTMV, g_BTMS, slot_keys_BMKS, slot_values_BMSV)
    heads, shared_by = q_BTNK.shape[2], q_BTNK.shape[2] // k_BTMK.shape[2]
    write_BTNS, g_BTNS = repeat_heads(write_BTMS, heads, 2), repeat_heads(g_BTMS, heads, 2)
    keys_BNKS = None if slot_keys_BMKS is None else repeat_heads(slot_keys_BMKS, heads, 1)
    values_BNSV = None if slot_values_BMSV is None else repeat_heads(slot_values_BMSV, heads, 1)
    scores_BTNS, keys_BNKS = _read_keys(
        q_BTNK, repeat_heads(k_BTMK, heads, 2), write_BTNS, g_BTNS, scale, keys_BNKS, segments_BT, chunk_size
    )
    y_BTNV, values_BNSV = channel_gated_recurrence(
        scores_BTNS.softmax(-1), write_BTNS, repeat_heads(v_BTMV, heads, 2), g_BTNS,
        state_BNKV=values_BNSV, segments_BT=segments_BT, chunk_size=chunk_size,
    )  # fmt: skip
    # Query heads that share keys and values have the same slots.
    return y_BTNV.to(q_BTNK.dtype), keys_BNKS[:, ::shared_by], values_BNSV[:, ::shared_by]


def _without_tokens(
    q_B0NK: Tensor, v_B0MV: Tensor, g_B0MS: Tensor, keys_BMKS: Tensor | None, values_BMSV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """An output of no token and the slots as they were, or empty."""
    batch, _, heads, key_dim = q_B0NK.shape
    groups, slots, value_dim, dtype = g_B0MS.shape[2], g_B0MS.shape[3], v_B0MV.shape[3], state_dtype(q_B0NK)
    if keys_BMKS is None:
        keys_BMKS = q_B0NK.new_zeros(batch, groups, key_dim, slots, dtype=dtype)
    if values_BMSV is None:
        values_BMSV = q_B0NK.new_zeros(batch, groups, slots, value_dim, dtype=dtype)
    return q_B0NK.new_zeros(batch, 0, heads, value_dim), keys_BMKS, values_BMSV


def _check_shapes(
    q_BTNK: Tensor, k_BTMK: Tensor, v_BTMV: Tensor, write_BTMS: Tensor, g_BTMS: Tensor, slot_keys_BMKS: Tensor | None,
    slot_values_BMSV: Tensor | None, segments_BT: Tensor | None,
) -> None:  # fmt: skip
    """Refuses shapes that do not fit together.

    Raises:
        ValueError: names the tensor, its shape and the expected one.
    """
    batch, length, heads, key_dim = q_BTNK.shape
    groups, slots, value_dim = g_BTMS.shape[2], g_BTMS.shape[3], v_BTMV.shape[3]
    due = {
        "k": (k_BTMK, (batch, length, groups, key_dim)),
        "v": (v_BTMV, (batch, length, groups, value_dim)),
        "write": (write_BTMS, (batch, length, groups, slots)),
        "g": (g_BTMS, (batch, length, groups, slots)),
        "slot_keys": (slot_keys_BMKS, (batch, groups, key_dim, slots)),
        "slot_values": (slot_values_BMSV, (batch, groups, slots, value_dim)),
        "segments": (segments_BT, (batch, length)),
    }
    for name, (tensor, shape) in due.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with q {tuple(q_BTNK.shape)} it must be {shape}")
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key-value heads evenly")


def _read_keys(
    q_BTNK: Tensor, k_BTNK: Tensor, write_BTNS: Tensor, g_BTNS: Tensor, scale: float, keys_BNKS: Tensor | None,
    segments_BT: Tensor | None, size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first pass: scale · q_t K_t [B, T, N, S], at least fp32, and the keys of the slots after the last token."""

    def compute(q: Tensor, k: Tensor, write: Tensor, g: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        q = q * scale
        if q.shape[1] == 1:
            written = k[:, 0].unsqueeze(-1) * write[:, 0].unsqueeze(-2)
            keys = written if keys is None else torch.addcmul(written, keys, g[:, 0].exp().unsqueeze(-2))
            return (q[:, 0].unsqueeze(-2) @ keys).squeeze(-2).unsqueeze(1), keys
        return _chunked(q, k, write, g, keys, segments_BT, size)

    tensors = in_dtype(state_dtype(q_BTNK), q_BTNK, k_BTNK, write_BTNS, g_BTNS, keys_BNKS)
    return outside_autocast(compute, *tensors)


def _chunked(
    q: Tensor, k: Tensor, write: Tensor, g: Tensor, keys: Tensor | None, segments: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """All tokens by chunks of equal length: a quadratic form inside each, the recurrence from one to the next."""
    length = q.shape[1]
    per_chunk, is_factored = chunk_length(g, size)
    chunks = -(-length // per_chunk)
    q, k, write, g = (by_chunk(tensor, chunks, per_chunk) for tensor in (q, k, write, g))
    products = q @ k.transpose(-1, -2) * causal_mask(q, per_chunk)
    resets = None if segments is None else Resets.of(segments, chunks, per_chunk)
    if resets is not None:
        products = products * resets.same_BcLL.unsqueeze(2)
    inside = (_inside_by_factors if is_factored else _inside_by_halves)(products, write, g)
    if resets is not None:
        inside = inside.reset(resets)

    added_BcNKS = k.transpose(-1, -2) @ (write * inside.to_end)
    if chunks == 1 and keys is None:
        return by_token(inside.y, length), added_BcNKS[:, 0]
    if keys is None:
        keys = torch.zeros_like(added_BcNKS[:, 0])
    before_BcNKS, keys = carry_states(added_BcNKS, inside.carry, keys)
    return by_token(inside.y + (q @ before_BcNKS) * inside.from_start, length), keys


@dataclass(slots=True)
class _Inside:
    """What happens inside chunks, and the decays that join them to the rest.

    Attributes:
        y: [B, c, N, L, S], what queries find of tokens of the same chunk.
        from_start, to_end: [B, c, N, L, S], what is left of the slots before the chunk, and of a write at its end.
        carry: [B, c, N, 1, S], what is left of the slots before the chunk after it.
    """

    y: Tensor
    from_start: Tensor
    to_end: Tensor
    carry: Tensor

    def reset(self, resets: Resets) -> _Inside:
        """The same with the slots emptied wherever a segment begins."""
        return _Inside(
            self.y,
            self.from_start * resets.from_start_BcL[:, :, None, :, None],
            self.to_end * resets.to_end_BcL[:, :, None, :, None],
            self.carry * resets.whole_Bc[:, :, None, None, None],
        )


def _inside_by_factors(products_BcNLL: Tensor, write_BcNLS: Tensor, g_BcNLS: Tensor) -> _Inside:
    """Two exponentials per slot and token about the chunk's middle; decays within chunks.FACTORED_RANGE."""
    total = g_BcNLS.cumsum(-2)
    last = total[..., -1:, :]
    y = products_BcNLL @ (write_BcNLS * (last / 2 - total).exp()) * (total - last / 2).exp()
    return _Inside(y, total.exp(), (last - total).exp(), last.exp())


def _inside_by_halves(products_BcNLL: Tensor, write_BcNLS: Tensor, g_BcNLS: Tensor) -> _Inside:
    """Decays however strong; L must be a power of two. See :func:`linearize.ops.decays.by_halves`.

    Blocks grow from one token to the chunk; the late half of each reads the early half through decays that meet at the
    border between them. Behind [B, c, N] stand the blocks, then the tokens of one.
    """
    y = (products_BcNLL.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * write_BcNLS).unsqueeze(-2)
    # Of each token: the decay since its block's start, its own included, and until its block's end, its own not.
    since = g_BcNLS.unsqueeze(-2)
    until = torch.zeros_like(since)
    half, length = 1, g_BcNLS.shape[-2]
    while half < length:
        since, until, whole, y = (x.unflatten(3, (-1, 2)).unbind(4) for x in (since, until, since[..., -1:, :], y))
        early = write_BcNLS.unflatten(3, (-1, 2, half))[..., 0, :, :] * until[0].exp()
        blocks = products_BcNLL.unflatten(4, (-1, 2, half)).unflatten(3, (-1, 2, half))
        across = blocks[:, :, :, :, 1, :, :, 0].diagonal(dim1=3, dim2=5).movedim(-1, 3)
        y = torch.cat([y[0], y[1] + across @ early * since[1].exp()], -2)
        since = torch.cat([since[0], since[1] + whole[0]], -2)
        until = torch.cat([until[0] + whole[1], until[1]], -2)
        half *= 2
    since, until = since.squeeze(3), until.squeeze(3)
    return _Inside(y.squeeze(3), since.exp(), until.exp(), since[..., -1:, :].exp())
