"""Options of the Mamba-2 mixer; the defaults are those of mmMamba's released configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from linearize.config import Config


class Mamba2Config(Config):
    """Options of one Mamba-2 mixer."""

    conv_width: int = Field(
        default=2, ge=0, le=16, description="Taps of the causal convolution over v, k and q; 0: none."
    )
    conv_activation: Literal["silu", "identity"] = Field(
        default="silu", description="What follows the convolution; not applied when conv_width is 0."
    )
    qkv_bias: bool = Field(
        default=False, description="Biases on the q, k and v projections, for teachers that have them."
    )
    qk_norm: bool = Field(default=False, description="RMSNorm over each head of q and k, after the convolution.")
    output_norm: bool = Field(
        default=True, description="RMSNorm over each head's output, one weight shared by the heads."
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the mean square inside every norm; no unit.")
    gate: bool = Field(default=True, description="Multiply the output with SiLU of a projection of the input.")
    skip: bool = Field(default=False, description="Add D times the value to each head's output (Mamba-2's D).")
    dt_scales_input: bool = Field(
        default=True,
        description="Write dt·k·vᵀ as Mamba-2 and mmMamba's code do; false: write k·vᵀ as mmMamba's paper prints.",
    )
    chunk_size: int = Field(
        default=128, ge=1, description="Most tokens per chunk of the torch backend; speed, not results."
    )
    backend: Literal["auto", "torch", "fla", "mamba_ssm"] = Field(
        default="auto", description="What computes the recurrence; auto takes the best that is right on the device."
    )
    conv_backend: Literal["auto", "torch", "fla", "causal_conv1d"] = Field(
        default="auto", description="What computes the convolution; auto takes the best that is right on the device."
    )

    @field_validator("conv_width")
    @classmethod
    def _no_single_tap(cls, width: int) -> int:
        if width == 1:
            raise ValueError("a convolution of one tap mixes nothing; use 0 for none or at least 2")
        return width
