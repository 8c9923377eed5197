"""The mixers of a recipe, built for every site without a weight: what each has, and which sites have alike ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linearize.plugin.components import ResolvedComponent
from linearize.protocols import AttentionSite


@dataclass(frozen=True, slots=True)
class SiteMixers:
    """Sites whose mixers are alike: in type and options, in their parameters with roles, and in the size of the state.

    Attributes:
        sites: indices, ascending.
        component: the mixer's type and options.
        sizes: name of every parameter -> how many numbers it holds.
        roles: name of every parameter -> its roles.
        state_bytes: the recurrent state of one sequence at one of the sites; constant in its length.
        remarks: what mixers say of their options -> the sites where they say it.
    """

    sites: tuple[int, ...]
    component: ResolvedComponent
    sizes: Mapping[str, int]
    roles: Mapping[str, frozenset[str]]
    state_bytes: int
    remarks: Mapping[str, tuple[int, ...]]

    @property
    def num_parameters(self) -> int:
        """Of the mixer of one site."""
        return sum(self.sizes.values())


def meta_mixer(component: ResolvedComponent, site: AttentionSite) -> Any:
    """The mixer for one site, on the meta device."""
    import torch

    with torch.device("meta"):
        return component.build(site)


def group_sites(
    sites: Sequence[AttentionSite], component: ResolvedComponent, *, device: str, dtype: str
) -> tuple[SiteMixers, ...]:
    """The mixers of one component at these sites, those that are alike together, in the order of their first sites.

    Each site's mixer is built, since only the mixer knows what it reads of a site.

    Args:
        device: where the run computes; dtype: that of its hidden states.

    Raises:
        LinearizeError, ValueError: the mixer does not fit one of the sites, or cannot run on the device.
    """
    groups: list[SiteMixers] = []
    for site in sites:
        mixer = meta_mixer(component, site)
        sizes = {name: parameter.numel() for name, parameter in mixer.named_parameters()}
        remarks = dict.fromkeys(getattr(mixer, "remarks", tuple)(), (site.index,))
        found = SiteMixers((site.index,), component, sizes, dict(mixer.roles()), state_bytes(mixer, dtype), remarks)
        for at, group in enumerate(groups):
            if dataclasses.replace(found, sites=group.sites, remarks=group.remarks) == group:
                groups[at] = _with_site(group, site.index, remarks)
                break
        else:
            if hasattr(mixer, "describe_backends"):
                mixer.describe_backends(device)  # refuses a backend that cannot run there
            groups.append(found)
    return tuple(groups)


def _with_site(group: SiteMixers, site: int, remarks: Mapping[str, tuple[int, ...]]) -> SiteMixers:
    """The group with one site more."""
    texts = dict.fromkeys([*group.remarks, *remarks])
    together = {text: (*group.remarks.get(text, ()), *remarks.get(text, ())) for text in texts}
    return dataclasses.replace(group, sites=(*group.sites, site), remarks=together)


def state_bytes(mixer: Any, dtype: str) -> int:
    """Bytes of one sequence's state of one mixer, whose hidden states have this dtype."""
    import torch

    state = mixer.empty_state(1, device="meta", dtype=getattr(torch, dtype))
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
