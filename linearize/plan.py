"""What a recipe would do: sites, what becomes linear, what each stage trains. No weight is loaded for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from linearize.protocols import AttentionSite, TeacherAdapter
from linearize.recipe.load import Draft, LoadedRecipe, finish_draft
from linearize.recipe.model import Stage
from linearize.stage_roles import asked_roles, check_roles_of_stand_in, select_parameters

if TYPE_CHECKING:
    from torch import nn

SAMPLES_FOR_TOKENS = 64


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage as it would run.

    Attributes:
        sites: indices of the sites whose mixers take part.
        trained: names of the trained parameters of one mixer (all mixers have the same).
        num_trained: parameters trained over all sites that take part.
        tokens: estimated valid tokens of the whole stage; None where it was not asked for.
    """

    stage: Stage
    objective: str
    sites: tuple[int, ...]
    trained: tuple[str, ...]
    num_trained: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe held against its teacher.

    Attributes:
        mixer_parameters: parameters of one site's mixer.
        state_bytes: size of one sequence's recurrent state over all linear sites, in bytes; constant in its length.
        caveats: what the student will not do as its teacher does, whatever it is trained on; told with the plan.
    """

    sites: tuple[AttentionSite, ...]
    linear: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    mixer_parameters: int
    state_bytes: int
    caveats: tuple[str, ...] = ()

    def sites_with_mixer(self) -> tuple[int, ...]:
        """Sites that get a mixer at all: the linear ones and those that only a stage trains."""
        return tuple(sorted({*self.linear, *(index for stage in self.stages for index in stage.sites)}))


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """A recipe without problems, its teacher's adapter (nothing loaded yet) and what it would do."""

    recipe: LoadedRecipe
    adapter: TeacherAdapter
    plan: Plan

    def with_tokens(self) -> CheckedRecipe:
        """The same with the tokens of each stage estimated; draws a few conversations of the recipe's data."""
        source = self.recipe.components["data"].build()
        return dataclasses.replace(self, plan=_with_tokens(self.plan, source, self.adapter))


def check_draft(draft: Draft) -> CheckedRecipe:
    """Completes the check of a draft with all that needs the teacher's configuration.

    Raises:
        RecipeError: with every problem found here and before, by TOML path.
    """
    adapter = _build(draft, "teacher")
    mixer: nn.Module | None = None
    sites: Sequence[AttentionSite] = ()
    if adapter is not None:
        with draft.telling("teacher"):
            sites = adapter.sites()
    if sites and "student.mixer" in draft.components:
        with draft.telling("student.mixer"):
            mixer = meta_mixer(draft, sites[0])
    linear = _linear_sites(draft, len(sites)) if sites else ()
    stages: list[StagePlan] = []
    if mixer is not None:
        stages = _plan_stages(draft, len(sites), linear, mixer)
    else:
        check_roles_of_stand_in(draft, sites[0] if sites else None)
    for path in ("data", *(p for p in draft.components if p.startswith("evaluate."))):
        _build(draft, path)
    state = 0
    if mixer is not None:
        with draft.telling("student.mixer"):
            state = state_bytes(mixer, sites[0], _device(draft)) * len(linear)
    recipe = finish_draft(draft)
    assert adapter is not None
    assert mixer is not None
    parameters = count(mixer.parameters())
    plan = Plan(tuple(sites), tuple(linear), tuple(stages), parameters, state, caveats_of(adapter))
    return CheckedRecipe(recipe, adapter, plan)


def caveats_of(adapter: TeacherAdapter) -> tuple[str, ...]:
    """What the adapter tells as ``TellsCaveats``; nothing where it does not."""
    told: Any = getattr(adapter, "caveats", tuple)
    return tuple(told())


def meta_mixer(recipe: Draft | LoadedRecipe, site: AttentionSite) -> nn.Module:
    """The recipe's mixer for one site, on the meta device."""
    import torch

    with torch.device("meta"):
        mixer: nn.Module = recipe.components["student.mixer"].build(site)
    return mixer


def state_bytes(mixer: nn.Module, site: AttentionSite, device: str) -> int:
    """Bytes of one sequence's state of one mixer, found by running it on one token.

    The mixer moves from the meta device to the run's for it, with whatever numbers the memory holds: kernels need not
    know meta, and one that cannot run on the device says so here.
    """
    import torch

    with torch.no_grad():
        _, state = mixer.to_empty(device=device)(torch.zeros(1, 1, site.hidden_size, device=device))
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def count(parameters: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(parameter.numel() for parameter in parameters)


def _with_tokens(plan: Plan, source: Any, adapter: TeacherAdapter) -> Plan:
    """The plan with each stage's tokens, from the mean length of a few conversations of the data."""
    size = SAMPLES_FOR_TOKENS if source.size is None else min(SAMPLES_FOR_TOKENS, source.size)
    per_conversation = sum(adapter.num_tokens(source[index]) for index in range(size)) / size
    stages = (
        dataclasses.replace(planned, tokens=round(per_conversation * planned.stage.batch_size * planned.stage.steps))
        for planned in plan.stages
    )
    return dataclasses.replace(plan, stages=tuple(stages))


def _device(draft: Draft) -> str:
    """Where the run would compute on this machine."""
    import torch

    wanted = draft.recipe.run.device if draft.recipe is not None else "auto"
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _build(draft: Draft, path: str) -> Any:
    component = draft.components.get(path)
    if component is None:
        return None
    with draft.telling(path):
        return component.build()
    return None


def _linear_sites(draft: Draft, num_sites: int) -> Sequence[int]:
    layout = _build(draft, "student.layout")
    if layout is None:
        return ()
    with draft.telling("student.layout"):
        linear: Sequence[int] = layout.linear_sites(num_sites)
        if not linear:
            raise ValueError(f"leaves no site linear; the teacher has {num_sites} sites 0..{num_sites - 1}")
        return linear
    return ()


def _plan_stages(draft: Draft, num_sites: int, linear: Sequence[int], mixer: Any) -> list[StagePlan]:
    roles = mixer.roles()
    sizes = {name: parameter.numel() for name, parameter in mixer.named_parameters()}
    plans = []
    for number, train, freeze in asked_roles(draft):
        trained: list[str] = []
        with draft.telling(f"stages.{number}.train"):
            trained = select_parameters(roles, train, freeze)
        stage, objective = draft.stages.get(number), draft.components.get(f"stages.{number}.objective")
        if stage is None:
            continue
        if stage.sites == "all" and objective is not None and not objective.spec.builder().is_layerwise:
            draft.tell(
                f"stages.{number}.sites",
                "'all' is for layer objectives; an objective on the whole student trains the sites that run; "
                "set sites = 'layout'",
                found="all",
                code="not_layerwise",
            )
        indices = tuple(range(num_sites)) if stage.sites == "all" else tuple(linear)
        num_trained = len(indices) * sum(sizes[name] for name in trained)
        plans.append(StagePlan(stage, stage.objective.type, indices, tuple(trained), num_trained))
    return plans
