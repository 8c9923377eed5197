"""Teachers whose sites differ: what the plan counts is what the optimizer of a run gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from linearize.api import check
from linearize.distill.loop import free_parameters
from linearize.distill.seeding import seed_student
from linearize.student.convert import linearized_sites


@pytest.fixture
def recipe(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """The tables of a recipe for a family's tiny checkpoint and a mixer."""
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "that"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": turns}]), encoding="utf-8")

    def tables(family: str, mixer: dict[str, Any]) -> dict[str, Any]:
        return {
            "run": {"name": "differ", "device": "cpu"},
            "teacher": {"type": "transformers", "checkpoint": str(checkpoint(family))},
            "student": {"mixer": mixer},
            "data": {"type": "llava_json", "path": str(tmp_path / "data.json")},
            "stages": [
                {"name": "new", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 1, "lr": 1e-3},
                {"name": "all", "objective": {"type": "logit_kl"}, "train": ["new", "qkv"], "steps": 1, "lr": 1e-3},
            ],
        }

    return tables


@pytest.mark.parametrize("family", ["gemma4_text", "llama4_text", "smollm3"])
@pytest.mark.parametrize("mixer", ["mamba2", "sliding_window"])
def test_the_plan_counts_what_the_optimizer_gets_by_name(
    family: str, mixer: str, recipe: Callable[[str, dict[str, Any]], dict[str, Any]]
) -> None:
    options = {"window": 4} if mixer == "sliding_window" else {}
    checked = check(recipe(family, {"type": mixer, **options}))
    plan = checked.plan
    model = checked.adapter.load(dtype=torch.float32, device="cpu")
    seed_student(model, checked.adapter, checked.recipe, plan, torch.device("cpu"))
    mixers: dict[int, Any] = {slot.site.index: slot.mixer for slot in linearized_sites(model)}
    assert plan.mixer_parameters == sum(p.numel() for one in mixers.values() for p in one.parameters())
    for planned in plan.stages:
        wanted = {
            f"{site}.{name}"
            for site, one in mixers.items()
            for name, roles in one.roles().items()
            if roles & set(planned.stage.train)
        }
        trained = free_parameters(model, planned)
        assert trained.keys() == wanted
        assert planned.num_trained == sum(parameter.numel() for parameter in trained.values())


def test_a_rope_that_does_nothing_and_dropped_biases_are_remarked_with_their_sites(
    recipe: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> None:
    rope = "rope = true changes nothing, since the teacher's attention has no positions there"
    [group] = check(recipe("smollm3", {"type": "mamba2", "rope": True})).plan.mixers
    without = tuple(site.index for site in check(recipe("smollm3", {"type": "gla"})).plan.sites if not site.has_rope)
    assert without
    assert group.remarks == {rope: without}
    assert check(recipe("smollm3", {"type": "mamba2", "rope": False})).plan.remarks() == []
    [group] = check(recipe("qwen2", {"type": "mamba2"})).plan.mixers
    assert list(group.remarks) == ["the teacher's biases of q, k and v are dropped; qkv_bias = true keeps them"]
    assert check(recipe("qwen2", {"type": "mamba2", "qkv_bias": True})).plan.remarks() == []
    inside = {"type": "swa_linear", "window": 4, "linear": {"type": "gla"}}
    assert check(recipe("qwen2", inside)).plan.remarks()
