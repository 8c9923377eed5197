"""Gated retention: one decay per head and token (YOCO, arXiv 2405.05254, section 3.1; fla calls it simple GLA).

    g_t = log sigmoid(W_g x_t + b) / τ

Where we differ: W_g has a bias, so that a seeded mixer can start with a decay for each head before any input counts.
Letters: B batch, T tokens, D model width, N query heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.mixing.draw import fill_linear
from linearize.mixing.start import at_least_fp32, spread_horizons
from linearize.protocols import SeedStyle
from linearize_gated.config import SimpleGlaConfig
from linearize_gated.recurrence import GatedMixer, gate_bias


class SimpleGla(GatedMixer):
    """Decays between tokens and heads alone; all key channels of a head share one."""

    config: SimpleGlaConfig
    own_roles: ClassVar[Mapping[str, str]] = {"decay_proj": "decay_input", "decay_bias": "decay"}

    def add_parameters(self) -> None:
        """W_g and b."""
        self.decay_proj = nn.Linear(self.site.hidden_size, self.site.num_heads, bias=False)
        self.decay_bias = nn.Parameter(torch.zeros(self.site.num_heads, dtype=torch.float32))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": W_g = 0 and b spreads the heads' horizons over 16 .. 1024 tokens. "scratch": W_g drawn, b = 0."""
        if style == "mimic":
            self.decay_proj.weight.zero_()
            keep_N = 1 - 1 / spread_horizons(self.site.num_heads)
            self.decay_bias.copy_(gate_bias(keep_N, self.config.decay_normalizer))
        else:
            fill_linear(self.decay_proj, generator)
            self.decay_bias.zero_()

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g [B, T, N]."""
        raw_BTN = at_least_fp32(self.decay_proj(x_BTD))
        return F.logsigmoid(raw_BTN + self.decay_bias.to(raw_BTN.dtype)) / self.config.decay_normalizer
