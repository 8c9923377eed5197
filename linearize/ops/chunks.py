"""What chunked recurrences share: cutting a sequence into equal chunks, packed documents, checks of shapes.

Letters: B batch, T tokens, N query heads, M key-value heads, K key width, V value width, c chunks, L tokens per chunk,
X anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Log-decay across a chunk up to which it may be split between q and k: exp(30) · exp(30) stays far inside fp32.
FACTORED_RANGE = 60.0


def state_dtype(q: Tensor) -> torch.dtype:
    """In which a recurrence is computed and its state kept: fp32, and fp64 for fp64 inputs."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def in_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors cast to ``dtype``; those that are not there stay away."""
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def even_length(length: int, size: int) -> int:
    """The length of equal chunks of at most ``size`` tokens."""
    return -(-length // -(-length // size))


def factored_length(g: Tensor, size: int, shortest: int) -> tuple[int, bool]:
    """Tokens per chunk, at most ``size``, and whether every decay inside a chunk is a product of two exponentials.

    That is many times cheaper than a matrix of decays, but has to stay inside fp32, so strong decays get shorter
    chunks, down to ``shortest``. Looking at the values would wait for a GPU and break a compiled graph: nothing is
    factored off the CPU or in one.

    Args:
        g: log-decays [B, T, N] or [B, T, N, K].
    """
    length = g.shape[1]
    per_chunk = even_length(length, size)
    if g.device.type != "cpu" or torch.compiler.is_compiling():
        return per_chunk, False
    while True:
        padded = F.pad(g.detach(), (*(0, 0) * (g.dim() - 2), 0, -length % per_chunk))
        if float(padded.unflatten(1, (-1, per_chunk)).sum(2).amin()) >= -FACTORED_RANGE:
            return per_chunk, True
        if per_chunk <= shortest:
            return per_chunk, False
        per_chunk = even_length(length, -(-per_chunk // 2))


def by_chunk(tensor: Tensor, chunks: int, per_chunk: int) -> Tensor:
    """[B, T, H] or [B, T, H, X] as [B, c, H, L(, X)]; tokens past T are zeros, which neither write nor decay."""
    missing = chunks * per_chunk - tensor.shape[1]
    if missing:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing))
    return tensor.unflatten(1, (chunks, per_chunk)).transpose(2, 3)


def by_token(y_BcNLV: Tensor, length: int) -> Tensor:
    """[B, c, N, L, V] as [B, T, N, V], without the tokens past T."""
    return y_BcNLV.transpose(2, 3).flatten(1, 2)[:, :length]


def causal_mask(like: Tensor, length: int) -> Tensor:
    """1 at [t, s] for s <= t, else 0: [L, L], of the dtype and device of ``like``."""
    return torch.ones(length, length, dtype=like.dtype, device=like.device).tril_()


def carry_states(added_BcNKV: Tensor, carry: Tensor, state_BNKV: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and the state after the last: S <- carry · S + added.

    Args:
        carry: [B, c, N, 1 or K, 1], the decay across a chunk.
    """
    before, state = [], state_BNKV
    for added, kept in zip(added_BcNKV.unbind(1), carry.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(added, state, kept)
    return torch.stack(before, 1), state


@dataclass(slots=True)
class Resets:
    """Which pairs of tokens, and of tokens and chunk borders, lie in one segment; 0 or 1 in fp32."""

    same_BcLL: Tensor
    from_start_BcL: Tensor
    to_end_BcL: Tensor
    whole_Bc: Tensor

    @classmethod
    def of(cls, segments_BT: Tensor, chunks: int, per_chunk: int) -> Resets:
        """A segment ends where ``segments_BT`` changes; the first token goes on from the state before it."""
        changes = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0))
        changes = F.pad(changes, (0, chunks * per_chunk - changes.shape[1]))
        count_BcL = changes.view(-1, chunks, per_chunk).cumsum(-1)
        last_Bc1 = count_BcL[..., -1:]
        return cls(
            (count_BcL.unsqueeze(-1) == count_BcL.unsqueeze(-2)).float(),
            (count_BcL == 0).float(),
            (count_BcL == last_Bc1).float(),
            (last_Bc1 == 0).squeeze(-1).float(),
        )


def without_tokens(q_B0NK: Tensor, value_dim: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a recurrence of no token gives: [B, 0, N, V], and the state [B, N, K, V] as it was, or zeros."""
    batch, _, heads, key_dim = q_B0NK.shape
    if state is None:
        state = q_B0NK.new_zeros(batch, heads, key_dim, value_dim, dtype=state_dtype(q_B0NK))
    return q_B0NK.new_zeros(batch, 0, heads, value_dim), state


def check_shapes(
    q_BTNK: Tensor, k_BTMK: Tensor, v_BTMV: Tensor, state: Tensor | None, segments: Tensor | None,
    by_query_head: Mapping[str, tuple[Tensor | None, bool]],
) -> None:  # fmt: skip
    """Refuses shapes that do not fit together.

    Args:
        by_query_head: what else comes per token and query head, by name; True: with one entry per key channel.

    Raises:
        ValueError: names the tensor, its shape and the expected one.
    """
    batch, length, heads, key_dim = q_BTNK.shape
    groups, value_dim = v_BTMV.shape[2:]
    due: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "k": (k_BTMK, (batch, length, groups, key_dim)),
        "v": (v_BTMV, (batch, length, groups, value_dim)),
    }
    for name, (tensor, is_per_channel) in by_query_head.items():
        due[name] = (tensor, (batch, length, heads, key_dim) if is_per_channel else (batch, length, heads))
    due["state"] = (state, (batch, heads, key_dim, value_dim))
    due["segments"] = (segments, (batch, length))
    for name, (tensor, shape) in due.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with q {tuple(q_BTNK.shape)} it must be {shape}")
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key-value heads evenly")
