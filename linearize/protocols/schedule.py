"""What makes the stages that a recipe starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Schedule(Protocol):
    """The stages that a recipe starts from."""

    def stages(self) -> Sequence[Mapping[str, Any]]:
        """Stages as the tables of a recipe, each with its ``name``; those of the recipe are laid over them."""
        ...
