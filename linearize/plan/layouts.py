"""Which sites become linear and which keep their attention (mmMamba, section 3.4 and Tables 5 and 6)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field

from linearize.plugin.config import Config
from linearize.plugin.specs import NoOptions
from linearize.protocols import AttentionSite
from linearize.recipe.site_ranges import SiteIndices


class AllLinear:
    """Every site becomes linear: the paper's ``linear`` student."""

    def __init__(self, config: NoOptions) -> None:
        del config

    def linear_sites(self, sites: Sequence[AttentionSite]) -> list[int]:
        """All of them."""
        return _without(sites, ())


class EveryNthConfig(Config):
    """Options of layout ``every``; the paper's hybrid is ``keep = 4`` with the first of each block kept."""

    keep: int = Field(gt=1, description="block length: one site of every `keep` sites keeps its attention")
    position: Literal["first", "last"] = Field(
        default="first", description="which site of a block is kept: first = head-interleaved, last = tail-interleaved"
    )


class EveryNth:
    """One site of every block keeps its attention."""

    def __init__(self, config: EveryNthConfig) -> None:
        self.config = config

    def linear_sites(self, sites: Sequence[AttentionSite]) -> list[int]:
        """All but the first (or last) site of each block of ``keep``.

        Raises:
            ValueError: the decoder is shorter than one block, so that the layout would keep no attention at all.
        """
        kept = sites[0 if self.config.position == "first" else self.config.keep - 1 :: self.config.keep]
        if not kept:
            raise ValueError(
                f"keeps one site of every {self.config.keep}, but the teacher has {len(sites)}; use a smaller keep"
            )
        return _without(sites, [site.index for site in kept])


class StackedConfig(Config):
    """Options of layout ``stacked``."""

    num_kept: int = Field(gt=0, description="how many neighbouring sites keep their attention")
    position: Literal["head", "tail"] = Field(default="head", description="head: the first sites; tail: the last")


class Stacked:
    """The first or the last sites keep their attention."""

    def __init__(self, config: StackedConfig) -> None:
        self.config = config

    def linear_sites(self, sites: Sequence[AttentionSite]) -> list[int]:
        """All but the ``num_kept`` at one end.

        Raises:
            ValueError: fewer sites than ``num_kept``.
        """
        count = self.config.num_kept
        if count > len(sites):
            raise ValueError(f"keeps {count} sites, but the teacher has {len(sites)} (0..{len(sites) - 1})")
        kept = sites[:count] if self.config.position == "head" else sites[-count:]
        return _without(sites, [site.index for site in kept])


class KeepConfig(Config):
    """Options of layout ``keep``."""

    sites: SiteIndices = Field(
        description='the sites that keep their attention, from 0 through the whole decoder: [0, 1, 5] or "0-1, 5"'
    )


class Keep:
    """The listed sites keep their attention."""

    def __init__(self, config: KeepConfig) -> None:
        self.config = config

    def linear_sites(self, sites: Sequence[AttentionSite]) -> list[int]:
        """All but the listed ones.

        Raises:
            ValueError: a listed site does not exist; names it.
        """
        for site in self.config.sites:
            if not 0 <= site < len(sites):
                raise ValueError(f"site {site} asked for, the teacher has {len(sites)} sites 0..{len(sites) - 1}")
        return _without(sites, self.config.sites)


def _without(sites: Sequence[AttentionSite], kept: Collection[int]) -> list[int]:
    return [site.index for site in sites if site.index not in kept]
