"""What gives a mixer its starting point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from linearize.protocols.site import AttentionSite, AttentionWeights


@dataclass(slots=True)
class SeedReport:
    """The full account of one site's seeding.

    Attributes:
        parameters: every mixer parameter -> "copied" (once, or once for each query head), "derived" or "fresh".
        teacher: every teacher tensor -> "used", "kept" (shared, frozen) or "dropped".
    """

    site: int
    parameters: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)


class Seeder(Protocol):
    """Gives a mixer its starting point."""

    def seed(
        self, weights: AttentionWeights, mixer: Any, *, site: AttentionSite, generator: torch.Generator
    ) -> SeedReport:
        """Sets every parameter of ``mixer`` and accounts for each of them and for each teacher tensor."""
        ...
