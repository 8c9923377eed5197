"""Options that several mixers share, one class for each idea; a mixer's configuration inherits those that it has.

Pydantic puts the fields of the last base first, so bases stand in the reverse of the order in which keys are listed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from linearize.plugin.config import Config

QkNorm = Literal["none", "rms", "l2"]
KeyValueHeads = Literal["grouped", "per_query"]


class ProjectionOptions(Config):
    """How q, k and v are made from the input."""

    qkv_bias: bool = Field(
        default=False, description="Biases on the q, k and v projections, for teachers that have them."
    )
    key_value_heads: KeyValueHeads = Field(
        default="grouped",
        description="grouped: k and v as in the teacher, each shared by a group of query heads (GQA); per_query: each "
        "query head has its own, which start as copies and are trained apart.",
    )


class ConvolutionOptions(Config):
    """The short causal convolution between the projections and the recurrence."""

    conv_width: int = Field(
        default=2, ge=0, le=16, description="Taps of the causal convolution over v, k and q; 0: none."
    )
    conv_activation: Literal["silu", "identity"] = Field(
        default="silu", description="What follows the convolution; not applied when conv_width is 0."
    )
    conv_backend: str = Field(
        default="auto",
        description="What computes the convolution; auto takes the best that is right on the "
        "device; `linearize plugins` lists the others.",
    )

    @field_validator("conv_width")
    @classmethod
    def _no_single_tap(cls, width: int) -> int:
        if width == 1:
            raise ValueError("a convolution of one tap mixes nothing; use 0 for none or at least 2")
        return width


class OutputOptions(Config):
    """What happens to each head's output before the teacher's output projection."""

    output_norm: bool = Field(
        default=True, description="RMSNorm over each head's output, one weight shared by the heads."
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the mean square inside every norm; no unit.")
    gate: bool = Field(default=True, description="Multiply the output with SiLU of a projection of the input.")


class ChunkOptions(Config):
    """How the torch backend walks along the sequence."""

    chunk_size: int = Field(
        default=128, ge=1, description="Most tokens per chunk of the torch backend; speed, not results."
    )


class RotaryOptions(Config):
    """What becomes of the teacher's rotary embedding."""

    rope: bool = Field(
        default=True,
        description="Turn q and k by the teacher's rotary embedding, where it has one; false: order comes from decay.",
    )


class RecurrenceOptions(ChunkOptions):
    """What computes a recurrence that torch and fla have."""

    backend: str = Field(
        default="auto",
        description="What computes the recurrence; auto takes the best that is right on the "
        "device; `linearize plugins` lists the others.",
    )


class MixerOptions(OutputOptions, ProjectionOptions, ConvolutionOptions):
    """The least that :class:`linearize.mixing.mixer.LinearMixer` reads."""


class LinearMixerOptions(RecurrenceOptions, RotaryOptions, MixerOptions):
    """The options of a mixer whose recurrence torch and fla compute."""

    conv_activation: Literal["silu", "identity"] = Field(
        default="identity",
        description="What follows the convolution; SiLU would take the sign from q and k, by which teachers compare.",
    )
    qk_norm: QkNorm = Field(
        default="none",
        description="Norm over each head of q and k, after the convolution: RMSNorm with a weight, or length 1.",
    )
