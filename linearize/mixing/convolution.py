"""The short causal convolution as a module: one depthwise filter per channel, and the kernel that runs it.

Letters: B batch, T tokens, C channels, W taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from linearize.mixing.draw import draw_uniform
from linearize.mixing.options import ConvolutionOptions
from linearize.ops.backends import choose
from linearize.protocols import SeedStyle


class ShortConvolution(nn.Conv1d):
    """A depthwise causal convolution over C channels; weight [C, 1, W] and bias [C] as PyTorch's Conv1d has them."""

    def __init__(self, channels: int, options: ConvolutionOptions) -> None:
        super().__init__(channels, channels, options.conv_width, groups=channels)
        self.options = options

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": the last tap 1 and all else 0, so that the input passes. "scratch": PyTorch's range."""
        assert self.bias is not None
        if style == "mimic":
            self.weight.zero_()
            self.weight[:, 0, -1] = 1.0
            self.bias.zero_()
        else:
            bound = self.options.conv_width**-0.5
            for parameter in self.parameters():
                parameter.copy_(draw_uniform(parameter, -bound, bound, generator))

    def forward(  # type: ignore[override]
        self, x_BTC: Tensor, *, state_BCX: Tensor | None, valid_BT: Tensor | None, segments_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :func:`linearize.ops.conv.causal_conv`: the output and the state [B, C, W-1] after the last token."""
        convolved: tuple[Tensor, Tensor] = choose(
            "conv", self.options.conv_backend, x_BTC.device, num_tokens=x_BTC.shape[1]
        ).kernel(
            x_BTC, self.weight.squeeze(1), self.bias, activation=self.options.conv_activation, state_BCX=state_BCX,
            valid_BT=valid_BT, segments_BT=segments_BT,
        )  # fmt: skip
        return convolved
