"""What decays do to the tokens of a chunk: between any two of them, since the chunk's start, and until its end.

A token reads another through the decays between them: score[t, s] = Σ_K r_t k_s exp(g_{s+1} + … + g_t). With one decay
per head that is a matrix of decays times a matrix of products. With one per key channel the decays stand inside the sum
over K. There are two ways to the same numbers, without a tensor [L, L, K]:

- by factors, exp(total_t - middle) on readers and exp(middle - total_s) on keys, about the middle of the chunk's decay:
  two exponentials per entry, but they grow with the decay, so it must stay within chunks.FACTORED_RANGE;
- by halves (GLA's secondary chunks, arXiv 2312.06635, taken down to single tokens): two tokens on different sides of a
  border read each other through the decay up to it and the decay after it. Both are at most 1, so nothing can overflow,
  and both are sums of their own tokens' decays, so a strong one elsewhere costs no precision.

Letters: B batch, c chunks, N heads, J kinds of readers, L tokens per chunk, K key width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops.chunks import Resets, causal_mask, factored_length

# Shorter chunks of factors allow stronger decays, whose gradients then lose digits: at 4 a token 1e-5 of their size.
SHORT_CHUNK = 16
# The matrices that halves build up cost more than they save in longer chunks.
LONGEST_HALVED = 64


@dataclass(slots=True)
class Decayed:
    """Readers and keys of chunks with every decay applied.

    Attributes:
        scores: [B, c, N, J, L, L], what each reader finds at each earlier or same token of its segment, else 0.
        from_start: [B, c, N, J, L, K], readers of the state before the chunk.
        to_end: [B, c, N, L, K], keys that write into the state after the chunk.
        carry: [B, c, N, 1 or K, 1], what is left of the state before the chunk after it.
    """

    scores: Tensor
    from_start: Tensor
    to_end: Tensor
    carry: Tensor

    def reset(self, resets: Resets) -> Decayed:
        """The same with the state emptied wherever a segment begins."""
        return Decayed(
            self.scores * resets.same_BcLL[:, :, None, None],
            self.from_start * resets.from_start_BcL[:, :, None, None, :, None],
            self.to_end * resets.to_end_BcL[:, :, None, :, None],
            self.carry * resets.whole_Bc[:, :, None, None, None],
        )


def without_decay(readers_BcNJLK: Tensor, k_BcNLK: Tensor) -> Decayed:
    """Nothing is forgotten."""
    scores = _products(readers_BcNJLK, k_BcNLK) * causal_mask(k_BcNLK, k_BcNLK.shape[-2])
    return Decayed(scores, readers_BcNJLK, k_BcNLK, k_BcNLK.new_ones(*k_BcNLK.shape[:3], 1, 1))


def per_head(readers_BcNJLK: Tensor, k_BcNLK: Tensor, g_BcNL: Tensor) -> Decayed:
    """One decay per head, however strong; L must be a power of two."""
    decays = head_decays(g_BcNL)
    return Decayed(
        _products(readers_BcNJLK, k_BcNLK) * decays.between.unsqueeze(3),
        readers_BcNJLK * decays.since.exp()[:, :, :, None, :, None],
        k_BcNLK * decays.until.exp().unsqueeze(-1),
        decays.since[..., -1].exp()[..., None, None],
    )


@dataclass(slots=True)
class HeadDecays:
    """Decays of one number per head and token inside a chunk.

    Attributes:
        between: [B, c, N, L, L], what is left of token s at token t; 0 for s > t.
        since: [B, c, N, L], the log of what is left at each token of the state before the chunk.
        until: the same of each token at the end of the chunk.
    """

    between: Tensor
    since: Tensor
    until: Tensor


def head_decays(g_BcNL: Tensor) -> HeadDecays:
    """All decays of a chunk by halves, as in :func:`by_halves`; L must be a power of two.

    A difference of two cumulative sums would be the same number, but its gradient is a difference too: what weak and
    strong pairs add to it cancels up to rounding, which is more than all there is where every decay is strong.
    """
    between = torch.ones_like(g_BcNL)[..., None, None]
    since = g_BcNL.unsqueeze(-1)
    until = torch.zeros_like(since)
    half, length = 1, g_BcNL.shape[-1]
    while half < length:
        since, until, whole, between = (
            x.unflatten(3, (-1, 2)).unbind(4) for x in (since, until, since[..., -1:], between)
        )
        across = since[1].exp().unsqueeze(-1) * until[0].exp().unsqueeze(-2)
        between = torch.cat([F.pad(between[0], (0, half)), torch.cat([across, between[1]], -1)], -2)
        since = torch.cat([since[0], since[1] + whole[0]], -1)
        until = torch.cat([until[0] + whole[1], until[1]], -1)
        half *= 2
    return HeadDecays(between.squeeze(3), since.squeeze(3), until.squeeze(3))


def chunk_length(g: Tensor, size: int) -> tuple[int, bool]:
    """Tokens per chunk, at most ``size``, and whether factors are safe; if not, halves are due, a power of two."""
    per_chunk, is_factored = factored_length(g, size, SHORT_CHUNK)
    return (per_chunk, True) if is_factored else (halved_length(g.shape[1], min(size, LONGEST_HALVED)), False)


def halved_length(length: int, size: int) -> int:
    """The power of two that covers ``length`` tokens, or else the largest of at most ``size``."""
    return min(1 << (size.bit_length() - 1), 1 << (length - 1).bit_length())


def by_factors(readers_BcNJLK: Tensor, k_BcNLK: Tensor, g_BcNLK: Tensor) -> Decayed:
    """One decay per key channel, each of them within chunks.FACTORED_RANGE across the chunk."""
    total = g_BcNLK.cumsum(-2)
    middle = total[..., -1:, :] / 2
    readers = readers_BcNJLK * (total - middle).exp().unsqueeze(3)
    k = k_BcNLK * (middle - total).exp()
    edge = middle.exp()
    return Decayed(
        _products(readers, k) * causal_mask(k, k.shape[-2]),
        readers * edge.unsqueeze(3),
        k * edge,
        total[..., -1:, :].exp().transpose(-1, -2),
    )


def by_halves(readers_BcNJLK: Tensor, k_BcNLK: Tensor, g_BcNLK: Tensor) -> Decayed:
    """One decay per key channel, however strong; L must be a power of two.

    Blocks grow from one token to the chunk: each is an early and a late half, whose scores are there already, and what
    the late one reads in the early one. Behind [B, c, N(, J)] stand the blocks, then the tokens of one.
    """
    length = k_BcNLK.shape[-2]
    scores = (readers_BcNJLK * k_BcNLK.unsqueeze(3)).sum(-1)[..., None, None]
    # Of each token: the decay since its block's start, its own included, and until its block's end, its own not.
    since = g_BcNLK.unsqueeze(-2)
    until = torch.zeros_like(since)
    half = 1
    while half < length:
        since, until, whole = (x.unflatten(3, (-1, 2)).unbind(4) for x in (since, until, since[..., -1:, :]))
        early = k_BcNLK.unflatten(3, (-1, 2, half))[..., 0, :, :] * until[0].exp()
        late = readers_BcNJLK.unflatten(4, (-1, 2, half))[..., 1, :, :] * since[1].exp().unsqueeze(3)
        across = late @ early.transpose(-1, -2).unsqueeze(3)
        first, second = scores.unflatten(4, (-1, 2)).unbind(5)
        scores = torch.cat([F.pad(first, (0, half)), torch.cat([across, second], -1)], -2)
        since = torch.cat([since[0], since[1] + whole[0]], -2)
        until = torch.cat([until[0] + whole[1], until[1]], -2)
        half *= 2
    since, until = since.squeeze(3), until.squeeze(3)
    return Decayed(
        scores.squeeze(4),
        readers_BcNJLK * since.exp().unsqueeze(3),
        k_BcNLK * until.exp(),
        since[..., -1:, :].exp().transpose(-1, -2),
    )


def _products(readers_BcNJLK: Tensor, k_BcNLK: Tensor) -> Tensor:
    """Every reader with every key: [B, c, N, J, L, L]."""
    scores = readers_BcNJLK.flatten(3, 4) @ k_BcNLK.transpose(-1, -2)
    return scores.unflatten(3, readers_BcNJLK.shape[3:5])
