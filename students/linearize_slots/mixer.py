"""Gated slot attention in the place of one softmax attention (GSA, arXiv 2409.07146, section 3).

    α_t = sigmoid(W_α x_t + b)^(1/τ)                        one number per slot, key-value head and token
    K_t = K_{t-1} diag(α_t) + k_t (1 - α_t)ᵀ                the slots' keys: averages of the keys that came by
    V_t = diag(α_t) V_{t-1} + (1 - α_t) v_tᵀ                their values: averages with the same weights
    y_t = softmax(q_t K_t · scale) V_t                      the teacher's scale, 1/sqrt(K) where it has no other

The softmax that other linear mixers give up stays, over slots in place of tokens. With a slot for each token it would
be the teacher's attention, so copied q, k and v mean here what they meant there.
Where this differs from the paper: α has a bias, for "mimic" to start from; q, k and v have no SiLU unless
``conv_activation`` says so, as q and k of attention are compared by their signs; the scores have attention's scale; the
rotary embedding is the teacher's; norm and gate of the output are those of all mixers here.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width, S slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.mixing.draw import fill_linear
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.start import LONGEST_HORIZON, at_least_fp32, spread
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_slots.config import GsaConfig

# Over how many tokens the first slot averages when it starts: the present one and little else.
SHORTEST_HORIZON = 2.0
# "mimic" draws the gates' weights from so many times PyTorch's range, so that slots start by taking in different
# tokens; docs/mixers_slots.md has what 0, 1, 4 and 8 do.
GATE_WIDTH = 4.0


class GatedSlotAttention(LinearMixer):
    """A GSA layer without its output projection.

    Query heads that share keys and values share slots. The state is "slot_keys" [B, M, K, S] and "slot_values"
    [B, M, S, V] in fp32, and "conv".
    """

    config: GsaConfig
    own_roles: ClassVar[Mapping[str, str]] = {"slot_proj": "decay_input", "slot_bias": "decay"}

    def __init__(self, config: GsaConfig, site: AttentionSite) -> None:
        super().__init__(
            config, site, operation="slots", backend=config.backend, qk_norm=config.qk_norm, rope=config.rope
        )

    def add_parameters(self) -> None:
        """W_α and b."""
        gates = self.num_key_value_heads * self.config.num_slots
        self.scale = self.site.key_dim**-0.5 if self.site.scale is None else self.site.scale
        self.slot_proj = nn.Linear(self.site.hidden_size, gates, bias=False)
        self.slot_bias = nn.Parameter(torch.zeros(gates, dtype=torch.float32))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """W_α is drawn in both styles: slots that were all written alike would hold the same.

        "mimic": four times PyTorch's range, and b spreads the slots of a head over averages of 2 .. 1024 tokens.
        "scratch": PyTorch's range, and b = 0.
        """
        fill_linear(self.slot_proj, generator)
        if style == "mimic":
            self.slot_proj.weight.mul_(GATE_WIDTH)
            keep_S = 1 - 1 / spread(SHORTEST_HORIZON, LONGEST_HORIZON, self.config.num_slots)
            bias_S = torch.logit(keep_S**self.config.decay_normalizer)
            self.slot_bias.copy_(bias_S.repeat(len(self.slot_bias) // len(bias_S)))
        else:
            self.slot_bias.zero_()

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """log α [B, T, M, S], at least fp32, also under autocast and in a bf16 model."""
        raw = self.slot_proj(x_BTD)
        with torch.autocast(raw.device.type, enabled=False):
            raw = at_least_fp32(raw)
            g = F.logsigmoid(raw + self.slot_bias.to(raw.dtype)) / self.config.decay_normalizer
        return g.unflatten(-1, (-1, self.config.num_slots))

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """Slots that hold nothing."""
        batch_and_heads, slots = (batch_size, self.num_key_value_heads), self.config.num_slots
        dtype = torch.promote_types(dtype, torch.float32)
        return {
            "slot_keys": torch.zeros(*batch_and_heads, self.site.key_dim, slots, device=device, dtype=dtype),
            "slot_values": torch.zeros(*batch_and_heads, slots, self.site.value_dim, device=device, dtype=dtype),
        }

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
        g_BTMS = self.log_decay(x_BTD)
        if valid_BT is not None:
            g_BTMS = g_BTMS * valid_BT[..., None, None]
        state = state or {}
        y_BTNV, keys, values = self.recurrence(x_BTD.device, num_tokens=x_BTD.shape[1]).kernel(
            q_BTNK, k_BTMK, v_BTMV, -torch.expm1(g_BTMS), g_BTMS, scale=self.scale,
            slot_keys_BMKS=state.get("slot_keys"), slot_values_BMSV=state.get("slot_values"),
            segments_BT=segments_BT, chunk_size=self.config.chunk_size,
        )  # fmt: skip
        return y_BTNV, {"slot_keys": keys, "slot_values": values}
