"""What a run will need is tried on one batch before its first stage, so that the last stage's fault costs no other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from linearize.distill.logits import final_hidden
from linearize.distill.loop import free_parameters, training_mode
from linearize.distill.objectives import Objective
from linearize.errors import LinearizeError, RunError
from linearize.plan.plan import StagePlan
from linearize.protocols import Batch, Conversation, Sample
from linearize.student.convert import teacher_route

MOST_LOOKED_AT = 16
"""Samples of the first step among which the batch is chosen."""


def choose_samples(first: Sequence[Sample], num_tokens: Callable[[Sample], int]) -> list[Sample]:
    """The longest of some samples, and the longest conversation with images where that one has none.

    Where there are conversations among them, rows of text are passed by: a batch holds one kind.
    """
    longest = sorted(first, key=num_tokens, reverse=True)
    conversations = [one for one in longest if isinstance(one, Conversation)]
    if not conversations:
        return longest[:1]
    with_images = [one for one in conversations if one.images]
    chosen = conversations[0]
    return [chosen] if chosen.images else [chosen, *with_images[:1]]


@torch.no_grad()
def prove_packing(model: nn.Module, alone: Sequence[Batch], packed: Batch) -> None:
    """Passes a model that gives in a packed row what it gives of each sample alone, as teacher and as student.

    Args:
        alone: one sample each, in the order of the row.
        packed: the same samples in one row, on the same device.

    Raises:
        RunError: the final hidden states differ by more than rounding; names the sample.
    """
    for route, name in ((teacher_route(model), "teacher"), (contextlib.nullcontext(), "student")):
        with route:
            row_TD = final_hidden(model, packed).x_BTD[0].float()
            for number, batch in enumerate(alone):
                own_TD = final_hidden(model, batch).x_BTD
                tolerance = torch.finfo(own_TD.dtype).eps ** 0.5
                own_TD = own_TD[0].float()
                shared_TD, row_TD = row_TD[: len(own_TD)], row_TD[len(own_TD) :]
                off = float((shared_TD - own_TD).norm() / own_TD.norm().clamp_min(1e-12))
                if not off <= tolerance:
                    raise RunError(
                        f"samples cannot share a row of this model's input: as {name} it gives other hidden states "
                        f"for sample {number + 1} of {len(alone)} in a row than alone (off by {off:.1e} of their size, "
                        f"rounding is below {tolerance:.1e}). Nothing was trained; leave pack out of the stages"
                    )


def rehearse(model: nn.Module, accelerator: Accelerator, stages: Sequence[tuple[StagePlan, Objective, Batch]]) -> None:
    """One forward and backward of each stage's objective, whose gradients are thrown away.

    Parameters, random state and what requires gradients are afterwards as they were.

    Args:
        stages: each with a batch as it will get them, on the accelerator's device.

    Raises:
        RunError: an objective fails on this model, or gives none of the stage's parameters a gradient; names the stage
            and the objective.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            for planned, objective, batch in stages:
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
