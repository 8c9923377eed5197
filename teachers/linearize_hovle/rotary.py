"""Rotary position tables, computed from the configuration at every call.

Nothing is stored: a model that is built on the meta device, cast or moved keeps exact tables, and no call leaves a
trace that a later call could see. The reference implementation keeps its tables and lets them grow with the longest
batch it has met.

Letters: B batch, T query tokens, S key positions (cached ones included), K width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig


class HovleRotaryEmbedding(nn.Module):
    """cos and sin for one tower; half-split rotary embedding, plain or with linear or dynamic NTK scaling.

    Dynamic NTK: once a call attends over more key positions S than the window holds (cached ones and pads count), its
    base is theta * (factor * S / window - (factor - 1)) ** (K / (K - 2)), as in the reference with freshly built
    tables. So beyond the window a row's result depends on the padded length of its batch.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        rope = config.rope_parameters
        self.head_dim = int(config.head_dim)
        self.theta = float(rope["rope_theta"])
        self.kind = str(rope["rope_type"])
        self.factor = float(rope.get("factor", 1.0))
        self.window = int(config.max_position_embeddings)

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies depend on the length, so that keys in a cache grow stale."""
        return self.kind == "dynamic"

    def base(self, num_positions: int) -> float:
        """The base of the frequencies when a call attends over ``num_positions`` keys."""
        if not self.is_dynamic or num_positions <= self.window:
            return self.theta
        growth = self.factor * num_positions / self.window - (self.factor - 1)
        return float(self.theta * growth ** (self.head_dim / (self.head_dim - 2)))

    def forward(self, x: Tensor, position_ids_BT: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, K] in the dtype and on the device of ``x``; the angles are computed in float32."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        frequency = 1.0 / (self.base(num_positions) ** exponent)
        position = position_ids_BT.to(device=x.device, dtype=torch.float32)
        if self.kind == "linear":
            position = position / self.factor
        angle = position[..., None] * frequency
        angle_BTK = torch.cat((angle, angle), dim=-1)
        return angle_BTK.cos().to(x.dtype), angle_BTK.sin().to(x.dtype)
