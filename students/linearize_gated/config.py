"""Options of the gated mixers; those that they share with others are in :mod:`linearize.mixing.options`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from linearize.mixing.options import ChunkOptions, LinearMixerOptions, MixerOptions

_CHUNK = "Most tokens per chunk of the torch backend; speed, not results."
_NORMALIZER = "Divides the log of the decay, so that a gate in its middle forgets slowly; no unit."


class SimpleGlaConfig(LinearMixerOptions):
    """Options of one gated retention mixer."""

    decay_normalizer: float = Field(default=16.0, gt=0, description=_NORMALIZER)


class RetnetConfig(LinearMixerOptions):
    """Options of one retention mixer; head j, from 0, keeps 1 - 2^-(first_exponent + j · exponent_step) a token."""

    first_exponent: float = Field(
        default=5.0, gt=0, description="The first head forgets 2^-this of its state per token; 5 as in the paper."
    )
    exponent_step: float = Field(
        default=1.0, ge=0,
        description="How much the exponent grows from head to head; 1 as in the paper, less for many heads.",
    )  # fmt: skip


class LightningConfig(LinearMixerOptions):
    """Options of one Lightning attention mixer."""


class GlaConfig(LinearMixerOptions):
    """Options of one gated linear attention mixer."""

    chunk_size: int = Field(default=32, ge=1, description=_CHUNK)
    decay_normalizer: float = Field(default=16.0, gt=0, description=_NORMALIZER)
    decay_rank: int = Field(default=16, ge=1, description="Width between the two matrices that give the decay.")


class Hgrn2Config(ChunkOptions, MixerOptions):
    """Options of one HGRN2 mixer."""

    conv_activation: Literal["silu", "identity"] = Field(
        default="identity", description="What follows the convolution; the key has its sigmoid besides."
    )
    chunk_size: int = Field(default=32, ge=1, description=_CHUNK)
    backend: str = Field(
        default="auto",
        description="What computes the recurrence; auto takes the best that is right on the "
        "device; `linearize plugins` lists the others.",
    )
