"""RMSNorm over the last dimension followed by a SiLU gate, as one step with its gradient by hand.

    out = y / sqrt(mean(y²) + eps) · weight · silu(gate)

The composed operations make some twenty passes over memory, which on a CPU cost more than the recurrence before them.
Inputs of less than fp32 are computed in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_rms_norm(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """The normed and gated y [..., V] in y's dtype; ``gate`` has y's shape, ``weight`` is [V]."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    return _GatedNorm.apply(y.to(dtype), weight.to(dtype), gate.to(dtype), eps).to(y.dtype)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        inverse = (size.square_() / y.shape[-1] + eps).rsqrt_()
        normed = y * inverse
        ctx.save_for_backward(normed, inverse, weight, gate)
        return (normed * weight).mul_(F.silu(gate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight, gate = ctx.saved_tensors
        needs_y, needs_weight, needs_gate, _ = ctx.needs_input_grad
        act = F.silu(gate)
        dout_normed = dout * normed
        gated = dout_normed * act
        dweight = gated.flatten(0, -2).sum(0) if needs_weight else None
        dy = None
        if needs_y:
            # Layer stages run backward inside the teacher's forward, where autocast may be on.
            with torch.autocast(gated.device.type, enabled=False):
                along = (gated @ weight / weight.shape[0]).unsqueeze(-1)
            dy = (dout * act).mul_(weight).addcmul_(normed, along, value=-1).mul_(inverse)
        dgate = torch.ops.aten.silu_backward(dout_normed.mul_(weight), gate) if needs_gate else None
        return dy, dweight, dgate, None
