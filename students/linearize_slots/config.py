"""Options of gated slot attention; those that it shares with others are in :mod:`linearize.mixing.options`."""

from __future__ import annotations

from pydantic import Field

from linearize.mixing.options import LinearMixerOptions


class GsaConfig(LinearMixerOptions):
    """Options of one gated slot attention mixer."""

    num_slots: int = Field(
        default=64, ge=2, description="Slots of each key-value head; a sequence keeps a key and a value in each."
    )
    decay_normalizer: float = Field(
        default=8.0, gt=0,
        description="Divides the log of what a slot keeps, so that a gate in its middle forgets slowly; no unit.",
    )  # fmt: skip
    chunk_size: int = Field(
        default=32, ge=1, description="Most tokens per chunk of the torch backend; speed, not results."
    )
