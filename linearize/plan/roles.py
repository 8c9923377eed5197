"""Which parameters of a mixer a stage trains, by their roles; and what can be said of roles without the real mixer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from linearize.errors import LinearizeError, did_you_mean
from linearize.plan.mixers import meta_mixer
from linearize.protocols import AttentionSite, SiteNorm
from linearize.recipe.load import MIXER, Draft, site_mixer_path

ANY_SITE = AttentionSite(
    index=0, path="", tower="", layer=0, cache_index=0, hidden_size=128, num_heads=2, num_key_value_heads=2,
    key_dim=64, value_dim=64, qkv_bias=True, qk_norm=SiteNorm(),
)  # fmt: skip
"""Stands in for the site of a teacher that is not known; its mixers have every parameter that depends on the site."""


def select_parameters(
    mixers: Sequence[Mapping[str, Collection[str]]], train: Sequence[str], freeze: Sequence[str]
) -> list[tuple[str, ...]]:
    """For each mixer the names of its parameters that have a role in ``train`` and none in ``freeze``.

    Args:
        mixers: the roles of every parameter, mixer by mixer. A role that one of them has need not be in the others.

    Raises:
        ValueError: a role that no parameter of any mixer has, or a selection that is empty in all; names the roles
            there are.
    """
    _refuse_unknown(mixers, train, freeze)
    chosen = [
        tuple(name for name, own in roles.items() if set(own) & set(train) and not set(own) & set(freeze))
        for roles in mixers
    ]
    if not any(chosen):
        raise ValueError(f"trains nothing: train = {list(train)} without freeze = {list(freeze)} leaves no parameter")
    return chosen


def asked_roles(draft: Draft) -> Iterator[tuple[int, list[str], list[str]]]:
    """Number, ``train`` and ``freeze`` of every stage that says them well, whatever else is wrong with it."""
    stages = draft.tables.get("stages")
    for number, table in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(table, dict):
            train, freeze = table.get("train"), table.get("freeze", [])
            if train and _are_texts(train) and _are_texts(freeze):
                yield number, list(train), list(freeze)


def check_roles_of_stand_in(draft: Draft, sites: Sequence[AttentionSite]) -> None:
    """Tells unknown roles where the mixer cannot be built as the recipe wants it, so that they come with the rest.

    Wrong options of the mixer are left at their defaults for it, and an unknown teacher's site is a usual one.
    """
    mixers = [_roles_of_stand_in(draft, path, sites) for path in (MIXER, *map(site_mixer_path, draft.site_mixers))]
    known = [roles for of_mixer in mixers for roles in of_mixer]
    for number, train, freeze in asked_roles(draft) if all(mixers) else ():
        with draft.telling(f"stages.{number}.train"):
            _refuse_unknown(known, train, freeze, ", as far as the other problems let it be seen")


def _roles_of_stand_in(draft: Draft, path: str, sites: Sequence[AttentionSite]) -> list[Mapping[str, Collection[str]]]:
    """The roles of the mixer at ``path`` at each site, or where it fits none at any; empty where it is not known."""
    component = draft.components.get(path) or draft.spared.get(path)
    found: list[Mapping[str, Collection[str]]] = []
    if component is None:
        return found
    for site in (*sites, ANY_SITE):
        if not found or site is not ANY_SITE:
            with contextlib.suppress(LinearizeError, ValueError):
                found.append(meta_mixer(component, site).roles())
    return found


def _refuse_unknown(
    mixers: Sequence[Mapping[str, Collection[str]]], train: Sequence[str], freeze: Sequence[str], reserve: str = ""
) -> None:
    known = sorted({role for roles in mixers for of_parameter in roles.values() for role in of_parameter})
    unknown = [role for role in (*train, *freeze) if role not in known]
    if unknown:
        asked, near = ", ".join(map(repr, unknown)), did_you_mean(unknown[0], known)
        raise ValueError(
            f"no parameter of the mixer has the role {asked}.{near} There are{reserve}: {', '.join(known)}"
        )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
