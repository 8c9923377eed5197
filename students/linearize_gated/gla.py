"""Gated linear attention: a decay per key channel and token (arXiv 2312.06635, section 4.4).

    g_t = log sigmoid(W_2 W_1 x_t + b) / τ        W_1 of few rows

Each query head has gates of its own, also where several share a key.
Letters: B batch, T tokens, D model width, N query heads, K key width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.mixing.draw import fill_linear
from linearize.mixing.start import at_least_fp32, spread_horizons
from linearize.protocols import AttentionSite, SeedStyle
from linearize_gated.config import GlaConfig
from linearize_gated.recurrence import GatedMixer, gate_bias


class Gla(GatedMixer):
    """Decays between tokens, heads and key channels."""

    config: GlaConfig
    own_roles: ClassVar[Mapping[str, str]] = {
        "decay_down": "decay_input", "decay_up": "decay_input", "decay_bias": "decay",
    }  # fmt: skip

    def __init__(self, config: GlaConfig, site: AttentionSite) -> None:
        super().__init__(config, site, operation="channel_gated")

    def add_parameters(self) -> None:
        """W_1, W_2 and b."""
        channels = self.site.num_heads * self.site.key_dim
        self.decay_down = nn.Linear(self.site.hidden_size, self.config.decay_rank, bias=False)
        self.decay_up = nn.Linear(self.config.decay_rank, channels, bias=False)
        self.decay_bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": W_2 = 0 and b spreads the heads' horizons over 16 .. 1024 tokens. "scratch": W_2 drawn, b = 0.

        The channels of a head start alike, so that the rotary embedding still depends on distances alone.
        """
        fill_linear(self.decay_down, generator)
        if style == "mimic":
            self.decay_up.weight.zero_()
            keep_N = 1 - 1 / spread_horizons(self.site.num_heads)
            self.decay_bias.copy_(gate_bias(keep_N, self.config.decay_normalizer).repeat_interleave(self.site.key_dim))
        else:
            fill_linear(self.decay_up, generator)
            self.decay_bias.zero_()

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g [B, T, N, K]."""
        raw = at_least_fp32(self.decay_up(self.decay_down(x_BTD)))
        g = F.logsigmoid(raw + self.decay_bias.to(raw.dtype)) / self.config.decay_normalizer
        return g.unflatten(-1, (self.site.num_heads, self.site.key_dim))
