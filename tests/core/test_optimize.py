"""Learning rates as a function of the step alone, and optimizers that resume."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from linearize.distill.optimize import StageOptimizer, learning_rate_factor
from linearize.recipe.model import LrSchedule, Stage


def make_stage(**changes: Any) -> Stage:
    table = {"name": "x", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 6, "lr": 0.1, "clip": None}
    return Stage.model_validate(table | changes)


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.matrix": (3, 4), "0.vector": (3,), "1.bias": (2, 2), "1.matrix": (5, 2)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def descend(optimizer: StageOptimizer, steps: range) -> list[float]:
    rates = []
    for step in steps:
        for number, parameter in enumerate(optimizer.parameters.values()):
            parameter.grad = torch.sin(parameter.detach() + step + number)
        rates.append(optimizer.step(step))
    return rates


def test_the_rate_warms_up_stays_and_decays_to_the_final_fraction() -> None:
    schedule = LrSchedule(warmup=0.2, decay=0.4, final=0.1)
    factors = [learning_rate_factor(schedule, step, 10) for step in range(11)]
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1]
    assert factors == pytest.approx(expected)


def test_a_rate_without_warmup_and_decay_is_constant() -> None:
    schedule = LrSchedule(warmup=0, decay=0)
    assert [learning_rate_factor(schedule, step, 5) for step in range(5)] == [1] * 5


def test_a_rate_that_only_decays_is_a_straight_line_that_never_reaches_zero_within_the_stage() -> None:
    schedule = LrSchedule(warmup=0, decay=1)
    assert [learning_rate_factor(schedule, step, 4) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_planned_steps_stand_for_the_stages_steps() -> None:
    schedule = LrSchedule(warmup=0.5, decay=0.5, planned_steps=100)
    assert learning_rate_factor(schedule, 9, 10) == pytest.approx(0.2)


def test_no_step_of_any_length_has_a_rate_of_zero_or_above_the_peak() -> None:
    schedule = LrSchedule(warmup=0.1, decay=0.1)
    factors = [learning_rate_factor(schedule, step, steps) for steps in (1, 2, 3, 7, 50) for step in range(steps)]
    assert min(factors) > 0
    assert max(factors) <= 1


def test_the_optimizer_takes_the_scheduled_rate() -> None:
    optimizer = StageOptimizer(make_stage(lr_schedule={"warmup": 0, "decay": 1}), parameters())
    assert descend(optimizer, range(6)) == pytest.approx([0.1 * (6 - step) / 6 for step in range(6)])


@pytest.mark.parametrize("type", ["adamw", "muon"])
def test_an_optimizer_that_was_saved_and_loaded_goes_on_bit_for_bit(type: str) -> None:
    stage = make_stage(optimizer={"type": type, "weight_decay": 0.1})
    through = StageOptimizer(stage, parameters())
    descend(through, range(6))
    first = StageOptimizer(stage, parameters())
    descend(first, range(3))
    second = StageOptimizer(stage, copy.deepcopy(first.parameters))
    second.load_state_tensors({name: tensor.clone() for name, tensor in first.state_tensors().items()})
    descend(second, range(3, 6))
    for name, parameter in through.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name


@pytest.mark.parametrize(("no_decay", "spared"), [("vectors", {"0.vector"}), ("biases", {"1.bias"})])
def test_weight_decay_spares_what_the_recipe_says(no_decay: str, spared: set[str]) -> None:
    stage = make_stage(optimizer={"weight_decay": 0.5, "no_decay": no_decay}, lr_schedule={"warmup": 0, "decay": 0})
    optimizer = StageOptimizer(stage, parameters())
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    before = parameters()
    unchanged = {name for name, parameter in optimizer.parameters.items() if torch.equal(parameter, before[name])}
    assert unchanged == spared
    assert torch.allclose(optimizer.parameters["0.matrix"], before["0.matrix"] * (1 - 0.1 * 0.5))


def test_clipping_limits_the_norm_of_the_whole_gradient() -> None:
    free, clipped = (
        StageOptimizer(make_stage(clip=clip, optimizer={"eps": 1.0}), parameters()) for clip in (None, 1e-3)
    )
    for optimizer in (free, clipped):
        for parameter in optimizer.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(0)
    before = parameters()
    moved = [
        sum(float((p - before[name]).detach().square().sum()) for name, p in optimizer.parameters.items())
        for optimizer in (free, clipped)
    ]
    assert moved[1] < 1e-4 * moved[0]


def test_gradients_are_gone_after_a_step() -> None:
    optimizer = StageOptimizer(make_stage(), parameters())
    descend(optimizer, range(1))
    assert all(parameter.grad is None for parameter in optimizer.parameters.values())
