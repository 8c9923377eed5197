"""The exponential-trapezoidal recurrence (Mamba-3, arXiv 2603.15569) as one gated recurrence over shifted tokens.

    S_t = α_t S_{t-1} + α_t (dt_t - γ_t) k_{t-1} v_{t-1}ᵀ + γ_t k_t v_tᵀ        y_t = q_t S_t
    α_t = exp(g_t)        γ_t = λ_t dt_t

λ = 1 is Mamba-2's rule; with λ = 1/2 a write is the trapezoid between two tokens. The state without the token's own
write, G_t = S_t - γ_t k_t v_tᵀ, follows a gated recurrence with the key and value of the token before:

    G_t = α_t G_{t-1} + α_t (γ_{t-1} + dt_t - γ_t) k_{t-1} v_{t-1}ᵀ        y_t = q_t G_t + γ_t (q_t · k_t) v_t

Nothing in it looks ahead, and every kernel of the gated recurrence computes it.
Letters: B batch, T tokens, U = T + 1 those and the one to come, N query heads, M key-value heads, K key width, V value
width, X anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops.gated import repeat_heads


@dataclass(frozen=True, slots=True)
class Carried:
    """What the recurrence hands on: the state [B, N, K, V] in fp32, the last key [B, N, K] and value [B, M, V]."""

    state: Tensor
    key: Tensor
    value: Tensor


def trapezoidal_recurrence(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    q_BTNK: Tensor,
    k_BTNK: Tensor,
    v_BTMV: Tensor,
    g_BTN: Tensor,
    dt_BTN: Tensor,
    own_BTN: Tensor,
    *,
    carried: Carried | None,
    valid_BT: Tensor | None,
    segments_BT: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Carried]:
    """The output [B, T, N, V], and what the next call goes on from.

    Args:
        kernel: computes :func:`linearize.ops.gated.gated_recurrence`.
        g_BTN, dt_BTN: log decay and time step, at least fp32, both 0 at invalid tokens.
        own_BTN: λ, the share of dt that a token writes itself.
        valid_BT: bool; invalid tokens are passed over, as if the tokens around them were neighbours.
        segments_BT: int; where it changes, the state starts anew and no token before counts as the one before.
    """
    heads, groups = q_BTNK.shape[2], v_BTMV.shape[2]
    gamma_BTN = own_BTN * dt_BTN
    before = _Before.of(k_BTNK, valid_BT, segments_BT)
    if carried is None:
        carried_key, carried_value = torch.zeros_like(k_BTNK[:, 0]), torch.zeros_like(v_BTMV[:, 0])
    else:
        carried_key, carried_value = carried.key.to(k_BTNK.dtype), carried.value.to(v_BTMV.dtype)
    keys_BUNK = before.pick(k_BTNK, carried_key)
    values_BUMV = before.pick(v_BTMV, carried_value)
    # The carried state holds the last token's own write already.
    gamma_BUN = before.pick(gamma_BTN, torch.zeros_like(gamma_BTN[:, 0])) * before.is_there_BU1
    write_BTN = g_BTN.exp() * (gamma_BUN[:, :-1] + (dt_BTN - gamma_BTN) * before.is_there_BU1[:, :-1])
    if valid_BT is not None:
        write_BTN = write_BTN * valid_BT.unsqueeze(-1)

    y_BTNV, state_BNKV = kernel(
        q_BTNK, keys_BUNK[:, :-1], repeat_heads(values_BUMV[:, :-1], heads, 2), g_BTN, write_BTN=write_BTN,
        state_BNKV=None if carried is None else carried.state, segments_BT=segments_BT, chunk_size=chunk_size,
    )  # fmt: skip
    dtype = state_BNKV.dtype
    along_BTN = (q_BTNK.to(dtype) * k_BTNK.to(dtype)).sum(-1) * gamma_BTN
    own_BTMJV = along_BTN.unflatten(2, (groups, -1)).unsqueeze(-1) * v_BTMV.unsqueeze(3)
    y_BTNV = (y_BTNV + own_BTMJV.flatten(2, 3)).to(y_BTNV.dtype)
    key_BNK = keys_BUNK[:, -1] * before.is_there_BU1[:, -1].unsqueeze(-1).to(k_BTNK.dtype)
    value_BMV = values_BUMV[:, -1]
    written_BNK = key_BNK.to(dtype) * gamma_BUN[:, -1].unsqueeze(-1)
    state_BNKV = state_BNKV + written_BNK.unsqueeze(-1) * repeat_heads(value_BMV.to(dtype), heads, 1).unsqueeze(-2)
    return y_BTNV, Carried(state_BNKV, key_BNK, value_BMV)


@dataclass(frozen=True, slots=True)
class _Before:
    """Which token comes before each token, and before the one after the last.

    Attributes:
        index_BU: 0 for the token before this call, t + 1 for token t; None: each has its neighbour before it.
        is_there_BU1: 1 where it is of the same segment, else 0; or 1 for all.
    """

    index_BU: Tensor | None
    is_there_BU1: Tensor

    @classmethod
    def of(cls, like_BTNK: Tensor, valid_BT: Tensor | None, segments_BT: Tensor | None) -> _Before:
        """Of a call with these invalid tokens and these segments."""
        batch, length = like_BTNK.shape[:2]
        index = None
        if valid_BT is not None:
            numbers = torch.arange(1, length + 1, device=like_BTNK.device) * valid_BT
            index = F.pad(numbers.cummax(1).values, (1, 0))
        is_there = torch.ones(1, 1, 1, device=like_BTNK.device)
        if segments_BT is not None:
            count = F.pad((segments_BT[:, 1:] != segments_BT[:, :-1]).cumsum(1), (1, 0))
            # The token before this call belongs to the first segment, the one after it to the last.
            of_token, of_before = F.pad(count, (0, 1)), F.pad(count, (1, 0))
            of_token[:, -1] = count[:, -1]
            if index is not None:
                of_before = of_before.gather(1, index)
            is_there = (of_token == of_before).unsqueeze(-1).float()
        return cls(index, is_there.expand(batch, length + 1, 1))

    def pick(self, x_BTX: Tensor, first_BX: Tensor) -> Tensor:
        """x of the token before each, [B, U, ...]; ``first_BX`` is that of the token before this call."""
        extended = torch.cat([first_BX.unsqueeze(1), x_BTX], 1)
        if self.index_BU is None:
            return extended
        index = self.index_BU[(...,) + (None,) * (extended.dim() - 2)]
        return extended.gather(1, index.expand(-1, -1, *extended.shape[2:]))
