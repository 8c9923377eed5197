"""What a run will need is tried on one batch before its first stage, so that the last stage's fault costs no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from linearize.distill.loop import free_parameters, training_mode
from linearize.distill.objectives import Objective
from linearize.errors import LinearizeError, RunError
from linearize.plan.plan import StagePlan
from linearize.protocols import Batch, Conversation, Sample

MOST_LOOKED_AT = 16
"""Samples of the first step among which the batch is chosen."""


def choose_samples(draw: Callable[[int], Sample], num_tokens: Callable[[Sample], int], batch_size: int) -> list[Sample]:
    """The longest of the first step's samples, and the longest conversation with images where that one has none.

    Where both kinds of samples are among them, one of a conversation with images is all.
    """
    first = [draw(sample) for sample in range(min(batch_size, MOST_LOOKED_AT))]
    longest = sorted(first, key=num_tokens, reverse=True)
    conversations = [one for one in longest if isinstance(one, Conversation)]
    if not conversations:
        return longest[:1]
    with_images = [one for one in conversations if one.images]
    chosen = conversations[0]
    return [chosen] if chosen.images else [chosen, *with_images[:1]]


def rehearse(
    model: nn.Module, accelerator: Accelerator, stages: Sequence[tuple[StagePlan, Objective]], batch: Batch
) -> None:
    """One forward and backward of each stage's objective, whose gradients are thrown away.

    Parameters, random state and what requires gradients are afterwards as they were.

    Args:
        batch: on the accelerator's device.

    Raises:
        RunError: an objective fails on this model, or gives none of the stage's parameters a gradient; names the stage
            and the objective.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            for planned, objective in stages:
                _rehearse_stage(model, accelerator, planned, objective, batch)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


def _rehearse_stage(
    model: nn.Module, accelerator: Accelerator, planned: StagePlan, objective: Objective, batch: Batch
) -> None:
    where = f"stage '{planned.stage.name}' (objective {planned.objective})"
    trained = free_parameters(model, planned)
    try:
        with training_mode(model, planned), accelerator.autocast():
            objective.backward(model, batch, planned.sites, max(objective.weight(batch), 1))
        reached = any(parameter.grad is not None for parameter in trained.values())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        what = str(error) if isinstance(error, LinearizeError) else f"{type(error).__name__}: {error}"
        raise RunError(
            f"{where} cannot run on this model, as one batch showed before the first stage: {what}. Nothing was "
            "trained; mend what it names, or take another objective for this stage"
        ) from error
    finally:
        for parameter in trained.values():
            parameter.grad = None
    if trained and not reached:
        raise RunError(
            f"{where} gave no gradient to any of the {len(trained)} tensors that the stage trains, as one batch showed "
            "before the first stage: its backward() has to call backward() on a loss that depends on the mixers. "
            "Nothing was trained; mend the objective's plug-in, or take another objective for this stage"
        )
