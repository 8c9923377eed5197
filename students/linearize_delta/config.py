"""Options of the delta rule's mixers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from linearize.mixing.options import MixerOptions, RecurrenceOptions, RotaryOptions


class DeltaNetConfig(RecurrenceOptions, RotaryOptions, MixerOptions):
    """Options of one DeltaNet mixer."""

    conv_activation: Literal["silu", "identity"] = Field(
        default="identity",
        description="What follows the convolution; SiLU, as in the papers, drops the signs of q and k.",
    )
    negative_eigenvalues: bool = Field(
        default=False,
        description="Write with a strength up to 2 instead of 1: what a key finds may change its sign.",
    )
    chunk_size: int = Field(
        default=32, ge=1, description="Most tokens that the torch backend solves at once; speed, not results."
    )


class GatedDeltaNetConfig(DeltaNetConfig):
    """Options of one Gated DeltaNet mixer."""


class KdaConfig(DeltaNetConfig):
    """Options of one Kimi Delta Attention mixer."""

    decay_rank: int = Field(
        default=0, ge=0, description="Rank of the map from the input to all channels' decays; 0: width of a key head."
    )
