"""Student formats of other projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class CheckpointFormat(Protocol):
    """A student format that another project published."""

    def read(self, folder: Path) -> Any:
        """The student, as a model that linearize would have saved."""
        ...

    def write(self, model: Any, folder: Path) -> None:
        """Writes ``model`` so that the other project's code could read it."""
        ...
