"""Several linear maps of one input, side by side.

Letters: B batch, T tokens, D model width, C all outputs together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project_together(x_BTD: Tensor, parts: Sequence[nn.Linear]) -> Tensor:
    """The outputs of ``parts`` joined along the last dimension, in their order: [B, T, C].

    The parts have a bias all or none.
    """
    if x_BTD.shape[1] == 1:
        return torch.cat([part(x_BTD) for part in parts], -1)
    # One product over joined weights: for a sequence the copy of the weights costs less than that of the results.
    weight = torch.cat([part.weight for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    return F.linear(x_BTD, weight, bias)
