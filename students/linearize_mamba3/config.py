"""Options of the Mamba-3 mixer; those that it shares with others are in :mod:`linearize.mixing.options`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from linearize.mixing.options import MixerOptions, RecurrenceOptions, RotaryOptions


class Mamba3Config(RecurrenceOptions, RotaryOptions, MixerOptions):
    """Options of one Mamba-3 mixer."""

    conv_width: int = Field(
        default=0, ge=0, le=16,
        description="Taps of a causal convolution over v, k and q; 0: none, as in Mamba-3; a write takes two tokens.",
    )  # fmt: skip
    conv_activation: Literal["silu", "identity"] = Field(
        default="identity",
        description="What follows the convolution; SiLU would take the sign from q and k, by which teachers compare.",
    )
    rope: bool = Field(
        default=True,
        description="Turn q and k by the teacher's rotary embedding too, where it has one; the paper has none.",
    )
    angle_fraction: float = Field(
        default=0.5, gt=0, le=1, description="Share of a key's channels that the token's own angles turn, in pairs."
    )
    decay_floor: float = Field(
        default=1e-4, ge=0, description="The decay rate A stays at least this far below 0, per unit of dt."
    )
    skip: bool = Field(default=True, description="Add D times the value to each head's output.")
