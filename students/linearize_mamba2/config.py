"""Options of the Mamba-2 mixer; the defaults are those of mmMamba's released configuration."""

from __future__ import annotations

from pydantic import Field

from linearize.mixing.options import ChunkOptions, MixerOptions, RotaryOptions


class Mamba2Config(ChunkOptions, RotaryOptions, MixerOptions):
    """Options of one Mamba-2 mixer."""

    rope: bool = Field(
        default=False,
        description="Turn q and k by the teacher's rotary embedding, where it has one; mmMamba drops it.",
    )
    qk_norm: bool = Field(default=False, description="RMSNorm over each head of q and k, after the convolution.")
    skip: bool = Field(default=False, description="Add D times the value to each head's output (Mamba-2's D).")
    dt_scales_input: bool = Field(
        default=True,
        description="Write dt·k·vᵀ as Mamba-2 and mmMamba's code do; false: write k·vᵀ as mmMamba's paper prints.",
    )
    backend: str = Field(
        default="auto",
        description="What computes the recurrence; auto takes the best that is right on the "
        "device; `linearize plugins` lists the others.",
    )
