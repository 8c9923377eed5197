"""Conversations grouped so that those in one batch need little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linearize.protocols.conversation import Conversation


def length_ordered_batches(
    conversations: Sequence[Conversation], batch_size: int, num_tokens: Callable[[Conversation], int]
) -> Iterator[list[int]]:
    """Indices of ``conversations`` in batches, longest first, so that memory that does not suffice shows at once."""
    lengths = [num_tokens(conversation) for conversation in conversations]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
