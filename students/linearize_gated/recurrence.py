"""The recurrence that all mixers here share, and the gate that starts at a given decay.

    S_t = exp(g_t) S_{t-1} + k_t v_tᵀ        y_t = q_t S_t / sqrt(K)

Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linearize.mixing.mixer import LinearMixer
from linearize.mixing.options import LinearMixerOptions
from linearize.protocols import AttentionSite, State


class GatedMixer(LinearMixer):
    """A mixer that differs from its kin in ``log_decay``; its state is "memory" [B, N, K, V] in fp32, and "conv"."""

    config: LinearMixerOptions

    def __init__(self, config: LinearMixerOptions, site: AttentionSite, *, operation: str = "gated") -> None:
        super().__init__(
            config, site, operation=operation, backend=config.backend, qk_norm=config.qk_norm, rope=config.rope
        )

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g, at most 0 and at least fp32: [B, T, N], or [B, T, N, K] for the operation "channel_gated".

        B and T may be 1 where g is the same for all.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no decay")

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """ "memory": zeros [B, N, K, V]."""
        return {"memory": self.empty_memory(batch_size, device=device, dtype=dtype)}

    def recur(
        self,
        x_BTD: Tensor,
        q_BTNK: Tensor,
        k_BTMK: Tensor,
        v_BTMV: Tensor,
        *,
        valid_BT: Tensor | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """See :meth:`linearize.mixing.mixer.LinearMixer.recur`."""
        return remember(
            self, q_BTNK, k_BTMK, v_BTMV, self.log_decay(x_BTD), chunk_size=self.config.chunk_size,
            valid_BT=valid_BT, segments_BT=segments_BT, state=state,
        )  # fmt: skip


def remember(
    mixer: LinearMixer,
    q_BTNK: Tensor,
    k_BTMK: Tensor,
    v_BTMV: Tensor,
    g: Tensor,
    *,
    chunk_size: int,
    valid_BT: Tensor | None,
    segments_BT: Tensor | None,
    state: State | None,
) -> tuple[Tensor, State]:
    """The recurrence by ``mixer``'s kernel, with g as ``GatedMixer.log_decay`` has it; a pad neither writes nor decays.

    Returns the output [B, T, N, V] and the state {"memory": [B, N, K, V]}.
    """
    g = g.expand(*q_BTNK.shape[:3], *g.shape[3:])
    write_BTN = None
    if valid_BT is not None:
        write_BTN = valid_BT.unsqueeze(-1).expand(q_BTNK.shape[:3]).to(g.dtype)
        g = g * (write_BTN if g.dim() == 3 else write_BTN.unsqueeze(-1))
    y_BTNV, memory = mixer.recurrence(q_BTNK.device, num_tokens=q_BTNK.shape[1]).kernel(
        q_BTNK, k_BTMK, v_BTMV, g, write_BTN=write_BTN, scale=mixer.site.key_dim**-0.5,
        state_BNKV=None if state is None else state["memory"], segments_BT=segments_BT, chunk_size=chunk_size,
    )  # fmt: skip
    return y_BTNV, {"memory": memory}


def gate_bias(keep: Tensor, normalizer: float) -> Tensor:
    """The x for which sigmoid(x)^(1/normalizer) is ``keep``."""
    return torch.logit(keep.double() ** normalizer)
