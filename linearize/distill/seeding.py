"""Mixers built, seeded and put into the teacher; every parameter and every teacher tensor accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from linearize.errors import PluginError
from linearize.plan.plan import Plan
from linearize.protocols import SeedReport, TeacherAdapter
from linearize.recipe.load import LoadedRecipe
from linearize.student.convert import convert, set_linear
from linearize.student.mixers import build_mixer

ACCOUNTS = {"parameters": ("copied", "derived", "fresh"), "teacher": ("used", "kept", "dropped")}


def seed_student(
    model: nn.Module, adapter: TeacherAdapter, recipe: LoadedRecipe, plan: Plan, device: torch.device
) -> list[SeedReport]:
    """Puts a seeded mixer into every site that the plan names; the student route then follows the layout.

    Each site draws from a generator of its own, so that its start depends on the run's seed and its index alone.

    Raises:
        PluginError: the seeder left a parameter or a teacher tensor unaccounted for.
    """
    seeder, wanted = recipe.components["student.seeder"].build(), plan.mixers_by_site()
    mixers: dict[int, nn.Module] = {}
    reports: list[SeedReport] = []
    for site in plan.sites:
        if site.index not in wanted:
            continue
        component = wanted[site.index].component
        mixer = build_mixer(component.spec, component.config, site).float()
        generator = torch.Generator().manual_seed(recipe.recipe.run.seed * 100_003 + site.index)
        weights = adapter.weights(model, site)
        report = seeder.seed(weights, mixer, site=site, generator=generator)
        require_full_account(report, dict(mixer.named_parameters()), weights.tensors(), seeder)
        mixers[site.index] = mixer.to(device)
        reports.append(report)
    convert(model, plan.sites, mixers)
    set_linear(model, plan.linear)
    return reports


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over names, dtypes and values of a model's parameters; seconds for billions of them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def summarise(reports: Sequence[SeedReport]) -> dict[str, Any]:
    """What became of parameters and teacher tensors, per site and in words that a person can check."""
    return {"sites": [{"site": r.site, "parameters": r.parameters, "teacher": r.teacher} for r in reports]}


def require_full_account(report: SeedReport, parameters: dict[str, Any], tensors: dict[str, Any], seeder: Any) -> None:
    """Passes a report that names every mixer parameter and every teacher tensor, and nothing else.

    Raises:
        PluginError: it does not; names what is missing or unknown, and which accounts there are.
    """
    for what, given, due in (("parameters", report.parameters, parameters), ("teacher", report.teacher, tensors)):
        missing, surplus = sorted(due.keys() - given.keys()), sorted(given.keys() - due.keys())
        odd = sorted(f"{name}={value}" for name, value in given.items() if value not in ACCOUNTS[what])
        if missing or surplus or odd:
            raise PluginError(
                f"seeder {type(seeder).__name__} gave no full account of the {what} of site {report.site}: "
                f"missing {missing or 'none'}, unknown {surplus or 'none'}, no such account {odd or 'none'} "
                f"(accounts are {', '.join(ACCOUNTS[what])})"
            )
