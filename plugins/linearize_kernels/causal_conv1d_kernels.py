"""The short convolution by the compiled kernels of causal-conv1d.

Imported only where :mod:`linearize_kernels.usable` found causal_conv1d so. Letters as in :mod:`linearize.ops.conv`.
"""

from __future__ import annotations

from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from linearize.ops import conv as torch_conv
from linearize.ops.conv import Activation

CHANNEL_MULTIPLE, WIDTHS = 8, range(2, 5)


def causal_conv(
    x_BTC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor | None = None,
    *,
    activation: Activation = "silu",
    state_BCX: Tensor | None = None,
    valid_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`linearize.ops.conv.causal_conv`.

    What the kernel cannot do goes to the torch reference: packed documents with a state to return, widths outside 2..4,
    numbers of channels that 8 does not divide. So do single tokens, where a launch costs more than the arithmetic.
    """
    channels, width = weight_CW.shape
    fits = width in WIDTHS and channels % CHANNEL_MULTIPLE == 0
    if not fits or segments_BT is not None or x_BTC.shape[1] <= 1:
        return torch_conv.causal_conv(
            x_BTC,
            weight_CW,
            bias_C,
            activation=activation,
            state_BCX=state_BCX,
            valid_BT=valid_BT,
            segments_BT=segments_BT,
        )
    x_BTC = torch_conv.zero_invalid(x_BTC, valid_BT).contiguous()
    initial = None
    if state_BCX is not None:
        # Channels last, as the kernel wants its carried inputs beside channels-last data.
        initial = state_BCX.to(x_BTC.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    y_BCT = causal_conv1d_fn(
        x_BTC.transpose(1, 2),
        weight_CW.to(x_BTC.dtype).contiguous(),
        None if bias_C is None else bias_C.to(x_BTC.dtype),
        initial_states=initial,
        activation="silu" if activation == "silu" else None,
    )
    return y_BCT.transpose(1, 2), torch_conv.last_inputs(x_BTC, width, state_BCX)
