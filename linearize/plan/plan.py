"""What a recipe would do: sites, what becomes linear, what each stage trains. No weight is loaded for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from linearize.plan.mixers import SiteMixers
from linearize.plugin.components import component_title
from linearize.protocols import (
    AttentionSite,
    DataSource,
    FitsTeacher,
    HoldsText,
    Mixes,
    TeacherAdapter,
    TellsContents,
    sample_tokens,
)
from linearize.recipe.load import LoadedRecipe
from linearize.recipe.model import Stage
from linearize.recipe.site_ranges import site_ranges
from linearize.wording import counted

SAMPLES_FOR_TOKENS = 64


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage as it would run.

    Attributes:
        trained: index of every site whose mixer takes part -> names of the parameters that are trained there.
        num_trained: parameters trained over all these sites.
        tokens: estimated valid tokens of the whole stage; None where it was not asked for.
    """

    stage: Stage
    objective: str
    trained: Mapping[int, tuple[str, ...]]
    num_trained: int
    tokens: int | None = None

    @property
    def sites(self) -> tuple[int, ...]:
        """Indices of the sites whose mixers take part, ascending."""
        return tuple(sorted(self.trained))


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe held against its teacher.

    Attributes:
        mixers: the mixers of all sites that get one, alike ones together: the linear sites and those that only a stage
            trains.
        caveats: what the student will not do as its teacher does, whatever it is trained on; told with the plan.
        data: what the data hold and how often the stages go through them; "" where it was not asked for.
    """

    sites: tuple[AttentionSite, ...]
    linear: tuple[int, ...]
    mixers: tuple[SiteMixers, ...]
    stages: tuple[StagePlan, ...]
    caveats: tuple[str, ...] = ()
    data: str = ""

    @property
    def mixer_parameters(self) -> int:
        """Parameters of all mixers together."""
        return sum(group.num_parameters * len(group.sites) for group in self.mixers)

    @property
    def state_bytes(self) -> int:
        """One sequence's recurrent state over all linear sites, in bytes; constant in its length."""
        return sum(group.state_bytes * len(set(group.sites) & set(self.linear)) for group in self.mixers)

    def remarks(self) -> list[str]:
        """What mixers say of their options at their sites, a line each."""
        return [
            f"{component_title(group.component.table())} at sites {site_ranges(sites)}: {text}"
            for group in self.mixers
            for text, sites in group.remarks.items()
        ]

    def stages_with_steps(self) -> dict[int, StagePlan]:
        """Position in the recipe -> stage, of those that are run; a stage of no steps is left out."""
        return {number: planned for number, planned in enumerate(self.stages) if planned.stage.steps}

    def mixers_by_site(self) -> dict[int, SiteMixers]:
        """Index of every site that gets a mixer -> the group that its mixer belongs to, ascending."""
        found = {site: group for group in self.mixers for site in group.sites}
        return {site: found[site] for site in sorted(found)}


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """A recipe without problems, its teacher's adapter (nothing loaded yet), its data, and what it would do."""

    recipe: LoadedRecipe
    adapter: TeacherAdapter
    source: DataSource
    plan: Plan

    def with_tokens(self) -> CheckedRecipe:
        """The same with its data told and the tokens of each stage estimated, for which it draws a few samples."""
        with self.recipe.components["data"].guarded():
            return dataclasses.replace(self, plan=_with_tokens(self.plan, self.source, self.adapter))


def _with_tokens(plan: Plan, source: DataSource, adapter: TeacherAdapter) -> Plan:
    """The plan with what the data hold, and each stage's tokens by the mean length of a few samples."""
    size = SAMPLES_FOR_TOKENS if source.size is None else min(SAMPLES_FOR_TOKENS, source.size)
    draw = source.outline if isinstance(source, FitsTeacher) else source.__getitem__
    per_sample = sum(sample_tokens(adapter, draw(index)) for index in range(size)) / size
    stages = (
        dataclasses.replace(planned, tokens=round(per_sample * planned.stage.batch_size * planned.stage.steps))
        for planned in plan.stages
    )
    return dataclasses.replace(plan, stages=tuple(stages), data=_contents(source, plan))


def _contents(source: DataSource, plan: Plan) -> str:
    """What the source holds, and how much of it the stages take."""
    noun = "row" if isinstance(source, HoldsText) else "sample" if isinstance(source, Mixes) else "conversation"
    taken = sum(planned.stage.steps * planned.stage.batch_size for planned in plan.stages)
    has = "without end" if source.size is None else counted(source.size, noun)
    if isinstance(source, TellsContents):
        has = source.contents()
    if source.size is None:
        return f"{has}; the stages take {counted(taken, noun)}"
    return f"{has}; the stages take {taken:,}, {taken / source.size:.3g} epochs"
