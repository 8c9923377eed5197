"""Where conversations come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from linearize.protocols.conversation import Conversation


class DataSource(Protocol):
    """Conversations by number: the same index always gives the same conversation."""

    size: int | None
    """How many there are; None when they are drawn without end."""

    def __getitem__(self, index: int) -> Conversation: ...


class ShuffledSource(Protocol):
    """What a data source of a certain size offers besides, when its order is not one to train in."""

    shuffle: bool
    """Whether each pass goes through the conversations in a new order; without this member: in their own."""
