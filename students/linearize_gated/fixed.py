"""Decays that are constants of the head and the layer: nothing of them is trained or stored.

Retention (RetNet, arXiv 2307.08621, equation 8), head j of N, from 0:

    exp(g) = 1 - 2^-(5 + j)

Lightning attention (arXiv 2401.04658; slopes as MiniMax-01 publishes them, 2501.08313), head j of N in layer l of L:

    g = -2^(-8 (j + 1) / N) · (1 - l / (L - 1 + 1e-5) + 1e-5)

Where we differ: RetNet turns q and k by xPos, here by the teacher's rotary embedding; MiniMax-01 turns none, and norms
all heads together.
Letters: N query heads; x [B, T, D] is the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linearize.errors import PluginError
from linearize.protocols import AttentionSite
from linearize_gated.config import LightningConfig, RetnetConfig
from linearize_gated.recurrence import GatedMixer


class Retnet(GatedMixer):
    """Retention."""

    config: RetnetConfig

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g [1, 1, N]."""
        exponent_N = self.config.first_exponent + _head_numbers(self.site, x_BTD) * self.config.exponent_step
        return torch.log1p(-torch.exp2(-exponent_N)).view(1, 1, -1)


class Lightning(GatedMixer):
    """Lightning attention: the deeper the layer, the longer its heads remember.

    Raises:
        PluginError: (from the constructor) the site does not say how many layers its tower has.
    """

    config: LightningConfig

    def __init__(self, config: LightningConfig, site: AttentionSite) -> None:
        if not site.layer < site.num_layers:
            raise PluginError(
                f"mixer 'lightning' weakens its decay from layer to layer and needs their number, but site "
                f"{site.index} is said to be layer {site.layer} of {site.num_layers} in tower '{site.tower}'; "
                "the teacher's adapter has to set AttentionSite.num_layers"
            )
        super().__init__(config, site)

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g [1, 1, N]: minus the slope of a head times the share of the layer."""
        slope_N = torch.exp2(-8 * (_head_numbers(self.site, x_BTD) + 1) / self.site.num_heads)
        share = 1 - self.site.layer / (self.site.num_layers - 1 + 1e-5) + 1e-5
        return (-share * slope_N).view(1, 1, -1)


def _head_numbers(site: AttentionSite, like: Tensor) -> Tensor:
    """0, 1, ..., N - 1 on the device of ``like``, at least fp32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(site.num_heads, dtype=dtype, device=like.device)
