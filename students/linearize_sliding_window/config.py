"""Options of the sliding window; no torch here."""

from __future__ import annotations

from pydantic import Field

from linearize.config import Config


class SlidingWindowConfig(Config):
    """Options of one sliding-window attention."""

    window: int = Field(
        default=64,
        ge=2,
        description="Tokens that a query sees, its own included; fewer where the teacher's own window is smaller.",
    )
    sinks: int = Field(
        default=0,
        ge=0,
        description="First tokens of a sequence that every query sees beside its window (arXiv 2309.17453).",
    )
    gain: bool = Field(
        default=True,
        description="A learnt factor per head on the output, 1 at the start: the part that is left may weigh less.",
    )
