"""What a recipe would do, as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from linearize.files.run_folder import RUNS
from linearize.plugin.components import component_title
from linearize.recipe.site_ranges import site_ranges
from linearize.wording import ABSENT, short_count

if TYPE_CHECKING:
    from linearize.plan.mixers import SiteMixers
    from linearize.plan.plan import Plan
    from linearize.plugin.components import ResolvedComponent
    from linearize.recipe.load import LoadedRecipe

GRADIENT_AND_MOMENTS_BYTES = 12
"""Per trained parameter: its gradient and AdamW's two moments, each float32."""


def plan_tables(recipe: LoadedRecipe, plan: Plan, model: Any = None, device: Any = None) -> RenderableType:
    """The plan: what stands where, then a stage a line.

    Args:
        model: the converted teacher; None where no weight was loaded, and the teacher's size is then not known.
        device: the torch.device of the run; None where it was not chosen yet.
    """
    kinds = [_kinds_of_mixers(plan)] if len(plan.mixers) > 1 else []
    return Group(_overview(recipe, plan, model, device), "", *kinds, _stages(plan))


def byte_size(count: int) -> str:
    """67584 -> "66.0 KiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def towers(plan: Plan) -> str:
    """The teacher's sites, tower by tower: "embedding 0-1, language 2-7"."""
    names = list(dict.fromkeys(site.tower for site in plan.sites))
    return "; ".join(f"{name} {site_ranges([s.index for s in plan.sites if s.tower == name])}" for name in names)


def _overview(recipe: LoadedRecipe, plan: Plan, model: Any, device: Any) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = f"Plan of {recipe.recipe.run.name}", "left", "bold"
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    kept = [site.index for site in plan.sites if site.index not in plan.linear]
    table.add_row("teacher", f"{_named(recipe.components['teacher'])}: {len(plan.sites)} sites ({towers(plan)})")
    titles = dict.fromkeys(_title(group) for group in plan.mixers if set(group.sites) & set(plan.linear))
    table.add_row(
        "student",
        f"{', '.join(titles)} at {len(plan.linear)} of {len(plan.sites)} sites "
        f"({site_ranges(plan.linear)}), seeded by {recipe.components['student.seeder'].spec.name}",
    )
    if kept:
        layout = _named(recipe.components["student.layout"])
        table.add_row("attention", f"stays at sites {site_ranges(kept)} (layout {layout})")
    table.add_row("mixers", _mixers(plan))
    on_top = f"; {len(kept)} sites keep their attention and store keys and values on top" if kept else ""
    table.add_row("state", f"{byte_size(plan.state_bytes)} per sequence, whatever its length{on_top}")
    table.add_row("data", _named(recipe.components["data"]))
    if plan.data:
        table.add_row("", plan.data)
    table.add_row("run", f"{RUNS / recipe.recipe.run.name}, seed {recipe.recipe.run.seed}")
    where = recipe.recipe.run.device if device is None else _device_name(device)
    table.add_row("device", f"{where}, {recipe.recipe.run.dtype}")
    if device is not None:
        table.add_row("kernels", _kernels(device))
    table.add_row("memory", _memory(plan, model))
    return table


def _title(group: SiteMixers) -> str:
    return component_title(group.component.table())


def _mixers(plan: Plan) -> str:
    """How many there are and what they hold; where all are alike, also what each holds."""
    count = sum(len(group.sites) for group in plan.mixers)
    if len(plan.mixers) == 1:
        return f"{count} of {plan.mixers[0].num_parameters:,} parameters each, {plan.mixer_parameters:,} in all"
    return f"{count} of {len(plan.mixers)} kinds, {plan.mixer_parameters:,} parameters in all"


def _kinds_of_mixers(plan: Plan) -> Table:
    """A line for each kind of mixer: where it stands, what one holds, what its state takes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("mixer")
    table.add_column("sites")
    for name in ("parameters each", "state each"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in plan.mixers:
        table.add_row(
            _title(group), site_ranges(group.sites), f"{group.num_parameters:,}", byte_size(group.state_bytes)
        )
    return table


def _stages(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("objective", no_wrap=True)
    table.add_column("trains")
    for name in ("parameters", "sites", "steps", "batch", "tokens", "lr"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, planned in enumerate(plan.stages, start=1):
        stage = planned.stage
        trains = " + ".join(stage.train) + (f" - {' - '.join(stage.freeze)}" if stage.freeze else "")
        tokens = ABSENT if planned.tokens is None else f"~{short_count(planned.tokens)}"
        table.add_row(
            f"{number} {stage.name}", planned.objective, trains, f"{planned.num_trained:,}", str(len(planned.sites)),
            f"{stage.steps:,}", str(stage.batch_size), tokens, f"{stage.lr:.1e}",
        )  # fmt: skip
    return table


def _named(component: ResolvedComponent) -> str:
    """The component's type with its options that are not at their default."""
    options = component.config.model_dump(mode="json", exclude_defaults=True)
    shown = ", ".join(f"{name} {value}" for name, value in options.items())
    return f"{component.spec.name} ({shown})" if shown else component.spec.name


def _device_name(device: Any) -> str:
    if device.type != "cuda":
        return str(device)
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def _kernels(device: Any) -> str:
    from linearize.ops.backends import available_backends

    obstacles = available_backends(device)
    text = ", ".join(name for name, obstacle in obstacles.items() if not obstacle)
    missing = [f"not {name}: {obstacle}" for name, obstacle in obstacles.items() if obstacle]
    return "; ".join([text, *missing]) if device.type == "cuda" else text


def _memory(plan: Plan, model: Any) -> str:
    training = max((stage.num_trained for stage in plan.stages), default=0) * GRADIENT_AND_MOMENTS_BYTES
    if model is None:
        known = byte_size(4 * plan.mixer_parameters + training)
        return f"about {known} for mixers, gradients and optimizer; the teacher and activations come on top"
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return f"about {byte_size(weights + training)} for weights, gradients and optimizer; activations come on top"
