"""Which sites become linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from linearize.protocols.site import AttentionSite


class Layout(Protocol):
    """Which sites become linear."""

    def linear_sites(self, sites: Sequence[AttentionSite]) -> Sequence[int]:
        """Indices of the sites that run linearly, ascending, each once; the others keep their attention.

        Args:
            sites: all attentions of the teacher's decoder, in execution order.

        Raises:
            ValueError: a site is named that does not exist; the text names it and the sites there are.
        """
        ...
