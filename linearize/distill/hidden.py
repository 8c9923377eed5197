"""The hidden states of both routes, layer by layer: a signal at every token, where answers are few and short.

After the hidden-state alignment of MOHAWK (arXiv 2408.10189, section 3.2), but with the student on its own hidden
states, as in the stage that it is added to.

Letters: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearize.student.convert import linearized_sites
from linearize.student.site import LinearizedAttention


@dataclass(frozen=True, slots=True)
class HiddenState:
    """What the tokens of a batch are at one place of the decoder; ``valid_BT`` None: all of them count."""

    x_BTD: Tensor
    valid_BT: Tensor | None


@contextmanager
def site_inputs(model: nn.Module) -> Iterator[list[HiddenState]]:
    """Inside, the input of every converted site is put into the list as the model runs, on either route.

    A site's input is the hidden state behind its layer's norm, so states of all layers are of one scale.
    """
    states: list[HiddenState] = []

    def keep(slot: LinearizedAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x_BTD = args[0] if args else kwargs["hidden_states"]
        states.append(HiddenState(x_BTD, slot.validity(x_BTD, kwargs)))

    hooks = [slot.register_forward_pre_hook(keep, with_kwargs=True) for slot in linearized_sites(model)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def hidden_error(teacher: Sequence[HiddenState], student: Sequence[HiddenState]) -> Tensor:
    """Squared distance over the teacher's squared length, mean over valid tokens and over states.

    States that no mixer comes before are left out: they are equal. Computed in float32. A token's error does not depend
    on the others.
    """
    errors = []
    for wanted, found in zip(teacher, student, strict=True):
        if found.x_BTD.requires_grad:
            wanted_BTD = wanted.x_BTD.float()
            weight_BT = wanted_BTD.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
            count: Tensor | int = weight_BT.numel()
            if wanted.valid_BT is not None:
                # Weights of 0 and no selection of tokens, whose gradient is many times slower on a CPU.
                weight_BT = weight_BT * wanted.valid_BT
                count = wanted.valid_BT.sum()
            squared_BT = (found.x_BTD.float() - wanted_BTD).square().sum(-1)
            errors.append((squared_BT * weight_BT).sum() / count)
    return torch.stack(errors).mean()
