"""Holding a recipe against its teacher's configuration: all that is wrong, or the plan. No weight is loaded."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.errors import PluginFault
from linearize.plan.mixers import SiteMixers, group_sites
from linearize.plan.plan import CheckedRecipe, Plan, StagePlan
from linearize.plan.roles import asked_roles, check_roles_of_stand_in, select_parameters
from linearize.plan.trials import try_benchmark, try_data
from linearize.plugin.discovery import Plugins
from linearize.protocols import AttentionSite, FitsTeacher, Layout, PacksSamples, TeacherAdapter
from linearize.recipe.load import MIXER, Draft, draft_recipe, finish_draft, site_mixer_path
from linearize.recipe.model import RunTable
from linearize.recipe.site_ranges import site_ranges

if TYPE_CHECKING:
    from linearize.plugin.components import ResolvedComponent


def check_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str], plugins: Plugins) -> CheckedRecipe:
    """Checks all of a recipe that can be known without loading a weight.

    Raises:
        RecipeError: with every problem at once, by TOML path.
    """
    return check_draft(draft_recipe(source, overrides, plugins))


def check_draft(draft: Draft) -> CheckedRecipe:
    """Completes the check of a draft with all that needs the teacher's configuration.

    Raises:
        RecipeError: with every problem found here and before, by TOML path.
    """
    adapter = _build(draft, "teacher")
    sites: Sequence[AttentionSite] = ()
    caveats: tuple[str, ...] = ()
    if adapter is not None:
        with draft.telling("teacher"):
            sites, caveats = tuple(adapter.sites()), caveats_of(adapter)
    linear = _linear_sites(draft, sites) if sites else None
    mixers = _site_mixers(draft, sites, linear) if sites else None
    stages: list[StagePlan] = []
    if mixers is not None:
        with draft.telling(MIXER):
            stages = _plan_stages(draft, sites, linear or (), mixers)
    else:
        check_roles_of_stand_in(draft, sites)
    _build(draft, "student.seeder")
    source = _build(draft, "data")
    try_data(draft, source, adapter)
    if adapter is not None and isinstance(source, FitsTeacher):
        with draft.telling("data"):
            source.fit_to(adapter.num_tokens)
    for path in [path for path in draft.components if path.startswith("evaluate.")]:
        built = _build(draft, path)
        if path.startswith("evaluate.benchmarks."):
            try_benchmark(draft, path, built, adapter)
    if adapter is not None:
        _check_packing(draft, adapter)
    recipe = finish_draft(draft)
    assert adapter is not None
    assert linear is not None
    assert mixers is not None
    plan = Plan(tuple(sites), linear, mixers, tuple(stages), caveats)
    return CheckedRecipe(recipe, adapter, source, plan)


def _check_packing(draft: Draft, adapter: TeacherAdapter) -> None:
    """Tells the stages whose samples are to share rows that the teacher cannot read so."""
    for number, stage in draft.stages.items():
        if stage.pack is None or not stage.steps:
            continue
        obstacle = "its adapter does not say how (linearize.protocols.PacksSamples)"
        if isinstance(adapter, PacksSamples):
            with draft.telling("teacher"):
                obstacle = adapter.packing_obstacle()
        if obstacle:
            draft.tell(
                f"stages.{number}.pack",
                f"samples cannot share a row of this teacher's input: {obstacle}; leave pack out, and set "
                "pad_to_multiple for few lengths",
                stage.pack,
                "no_packing",
            )


def caveats_of(adapter: TeacherAdapter) -> tuple[str, ...]:
    """What the adapter tells as ``TellsCaveats``; nothing where it does not."""
    told: Any = getattr(adapter, "caveats", tuple)
    return tuple(told())


def _build(draft: Draft, path: str) -> Any:
    component = draft.components.get(path)
    if component is None:
        return None
    with draft.telling(path):
        return component.build()
    return None


def _device(wanted: str) -> str:
    """Where a run with this ``run.device`` computes on this machine."""
    import torch

    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _linear_sites(draft: Draft, sites: Sequence[AttentionSite]) -> tuple[int, ...] | None:
    """What the layout names; None where it, or what it names, is wrong."""
    layout = _build(draft, "student.layout")
    if layout is None:
        return None
    with draft.telling("student.layout"):
        return checked_indices(layout, draft.components["student.layout"], sites)
    return None


def checked_indices(layout: Layout, component: ResolvedComponent, sites: Sequence[AttentionSite]) -> tuple[int, ...]:
    """The indices that a layout names.

    Raises:
        PluginFault: it returns something else than the indices of some sites, ascending, each once.
        ValueError: it refuses these sites, or names none of them.
    """
    known = f"the teacher has {len(sites)} sites {sites[0].index}..{sites[-1].index}"
    named: Any = layout.linear_sites(sites)
    try:
        indices = tuple(operator.index(one) for one in named)
    except TypeError:
        indices = None
    if indices is None or list(indices) != sorted({site.index for site in sites} & set(indices)):
        raise PluginFault(
            component.title, f"linear_sites gave {named!r}; expected indices of sites, ascending, each once; {known}"
        )
    if not indices:
        raise ValueError(f"leaves no site linear; {known}")
    return indices


def _site_mixers(
    draft: Draft, sites: Sequence[AttentionSite], linear: Sequence[int] | None
) -> tuple[SiteMixers, ...] | None:
    """The mixers of all sites that get one; None where one of them cannot be built."""
    everywhere = linear is None or any(stage.sites == "all" and stage.steps for stage in draft.stages.values())
    wanted = [site for site in sites if everywhere or site.index in (linear or ())]
    paths = _mixer_paths(draft, sites, {site.index for site in wanted})
    run = draft.recipe.run if draft.recipe is not None else RunTable(name="any")
    groups: list[SiteMixers] | None = []
    for path in dict.fromkeys(paths[site.index] for site in wanted):
        component, of_path = draft.components.get(path), None
        if component is not None:
            chosen = [site for site in wanted if paths[site.index] == path]
            with draft.telling(path):
                of_path = group_sites(chosen, component, device=_device(run.device), dtype=run.dtype)
        groups = None if groups is None or of_path is None else [*groups, *of_path]
    return None if groups is None else tuple(sorted(groups, key=lambda group: group.sites[0]))


def _mixer_paths(draft: Draft, sites: Sequence[AttentionSite], wanted: Set[int]) -> dict[int, str]:
    """Index of every site -> path of its mixer in the recipe; tells the entries of `student.sites` that name no site.

    Args:
        wanted: the sites that get a mixer.
    """
    paths = {site.index: MIXER for site in sites}
    for number, entry in draft.site_mixers.items():
        unknown = sorted(set(entry.sites) - set(paths))
        if unknown:
            draft.tell(
                f"student.sites.{number}.sites",
                f"there is no site {site_ranges(unknown)}; the teacher has {len(sites)} sites 0..{len(sites) - 1}",
                list(entry.sites), "unknown_site",
            )  # fmt: skip
        elif not wanted & set(entry.sites):
            draft.tell(
                f"student.sites.{number}.sites",
                f"none of the sites {site_ranges(entry.sites)} gets a mixer, since student.layout lets them keep their "
                "attention; leave the entry out, or choose another layout",
                list(entry.sites), "unused",
            )  # fmt: skip
        paths.update(dict.fromkeys(set(entry.sites) & set(paths), site_mixer_path(number)))
    return paths


def _plan_stages(
    draft: Draft, sites: Sequence[AttentionSite], linear: Sequence[int], mixers: Sequence[SiteMixers]
) -> list[StagePlan]:
    plans = []
    for number, train, freeze in asked_roles(draft):
        stage, objective = draft.stages.get(number), _build(draft, f"stages.{number}.objective")
        indices = {site.index for site in sites} if stage is not None and stage.sites == "all" else set(linear)
        taking_part = [group for group in mixers if indices & set(group.sites)] or mixers
        trained: Mapping[int, tuple[str, ...]] = {}
        with draft.telling(f"stages.{number}.train"):
            chosen = select_parameters([group.roles for group in taking_part], train, freeze)
            trained = {
                site: names
                for group, names in zip(taking_part, chosen, strict=True)
                for site in group.sites
                if site in indices and names and (stage is None or stage.steps)
            }
        if stage is None:
            continue
        if stage.sites == "all" and objective is not None and not objective.is_layerwise:
            draft.tell(
                f"stages.{number}.sites",
                "'all' is for layer objectives; an objective on the whole student trains the sites that run; "
                "set sites = 'layout'",
                found="all",
                code="not_layerwise",
            )
        sizes = {site: group.sizes for group in taking_part for site in group.sites}
        num_trained = sum(sizes[site][name] for site, names in trained.items() for name in names)
        plans.append(StagePlan(stage, stage.objective.type, dict(sorted(trained.items())), num_trained))
    return plans
