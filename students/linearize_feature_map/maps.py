"""Feature maps: what turns a query or key head into numbers that are never negative, so that products are weights.

    hedgehog  φ(x) = [softmax(Wx + b), softmax(-Wx - b)]        (arXiv 2402.04347, as LoLCATs' code has it, 2410.10254)
    t2r       φ(x) = relu(Wx + b)                               (2103.13076)
    elu       φ(x) = elu(x) + 1                                 (2006.16236)

Each head has a W and b of its own. Features are computed in at least fp32 and rounded to the dtype of x.
Letters: B batch, T tokens, H heads, K head width, R rows of W, F features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.mixing.draw import draw_uniform
from linearize.mixing.start import at_least_fp32
from linearize.protocols import SeedStyle


class LearntMap(nn.Module):
    """Wx + b for each head, ``weight`` [H, K, R] and ``bias`` [H·R]; what follows is in ``features``."""

    def __init__(self, heads: int, key_dim: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, key_dim, rows))
        self.bias = nn.Parameter(torch.zeros(heads * rows))

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": row i of W is channel i, rows beyond the head's width are drawn, b = 0. "scratch": all drawn.

        What is drawn comes from PyTorch's range for linear layers.
        """
        _, key_dim, rows = self.weight.shape
        for parameter in (self.weight, self.bias):
            parameter.copy_(draw_uniform(parameter, -(key_dim**-0.5), key_dim**-0.5, generator))
        if style == "mimic":
            self.weight[..., :key_dim] = torch.eye(key_dim, min(key_dim, rows)).to(self.weight)
            self.bias.zero_()

    def forward(self, x_BTHK: Tensor) -> Tensor:
        """The features [B, T, H, F]."""
        raw_BTHR = at_least_fp32(torch.einsum("bthk,hkr->bthr", x_BTHK, self.weight))
        bias_HR = self.bias.view(raw_BTHR.shape[2:]).to(raw_BTHR.dtype)
        return self.features(raw_BTHR + bias_HR).to(x_BTHK.dtype)

    def features(self, raw_BTHR: Tensor) -> Tensor:
        """What becomes of Wx + b: [B, T, H, F]."""
        raise NotImplementedError(f"{type(self).__name__} defines no features")


class Hedgehog(LearntMap):
    """Two softmaxes of opposite sign: F = 2R. A channel counts where it is large, and another where it is small."""

    def features(self, raw_BTHR: Tensor) -> Tensor:
        """See the module."""
        return torch.cat([raw_BTHR.softmax(-1), (-raw_BTHR).softmax(-1)], -1)


class T2r(LearntMap):
    """A rectified linear map: F = R."""

    def features(self, raw_BTHR: Tensor) -> Tensor:
        """See the module."""
        return raw_BTHR.relu()


class PositiveElu(nn.Module):
    """elu(x) + 1: F = K, and nothing to learn."""

    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Sets nothing."""

    def forward(self, x_BTHK: Tensor) -> Tensor:
        """The features [B, T, H, K]."""
        return (F.elu(at_least_fp32(x_BTHK)) + 1).to(x_BTHK.dtype)
