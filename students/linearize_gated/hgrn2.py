"""HGRN2: a key channel takes in as much as it forgets (arXiv 2404.07904, section 3).

    k_t = (1 - β) sigmoid(W_k x_t)        exp(g_t) = 1 - k_t

so the key is the gate, and the teacher's key projection becomes both: where its key is large, the state is overwritten.
Where we differ: the lower bound β on what is kept is learnt for each key-value head by itself; the paper ties it across
layers, which a site knows nothing of. There is no rotary embedding, as a turned key would be no gate.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.mixing.mixer import LinearMixer
from linearize.mixing.start import at_least_fp32, spread_horizons
from linearize.ops.gated import repeat_heads
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_gated.config import Hgrn2Config
from linearize_gated.recurrence import remember


class Hgrn2(LinearMixer):
    """Keys and decays from one projection, shared by query heads as the teacher shares keys."""

    config: Hgrn2Config
    own_roles: ClassVar[Mapping[str, str]] = {"keep_bound": "decay"}

    def __init__(self, config: Hgrn2Config, site: AttentionSite) -> None:
        super().__init__(config, site, operation="channel_gated", backend=config.backend)

    def add_parameters(self) -> None:
        """The logit of β."""
        self.keep_bound = nn.Parameter(torch.zeros(self.num_key_value_heads, dtype=torch.float32))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": β so that a key of 0 forgets over 16 .. 1024 tokens, spread over the heads. "scratch": β = 1/2."""
        if style == "mimic":
            self.keep_bound.copy_(torch.logit(1 - 2 / spread_horizons(self.num_key_value_heads).double()))
        else:
            self.keep_bound.zero_()

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
        raw_BTMK = at_least_fp32(k_BTMK)
        bound_M1 = self.keep_bound.to(raw_BTMK.dtype).unsqueeze(-1)
        # log(β + (1 - β)(1 - sigmoid(k))), finite for any k and β.
        g_BTMK = torch.logaddexp(F.logsigmoid(bound_M1), F.logsigmoid(-bound_M1) + F.logsigmoid(-raw_BTMK))
        key_BTMK = torch.sigmoid(-bound_M1) * torch.sigmoid(raw_BTMK)
        return remember(
            self, q_BTNK, key_BTMK.to(k_BTMK.dtype), v_BTMV, repeat_heads(g_BTMK, self.site.num_heads, 2),
            chunk_size=self.config.chunk_size, valid_BT=valid_BT, segments_BT=segments_BT, state=state,
        )  # fmt: skip
