"""The hidden states of both routes, layer by layer: a signal at every token, where answers are few and short.

After the hidden-state alignment of MOHAWK (arXiv 2408.10189, section 3.2), but with the student on its own hidden
states, as in the stage that it is added to.

Letters: P valid tokens of a batch, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from linearize.student.convert import linearized_sites
from linearize.student.site import LinearizedAttention, every_token


@contextmanager
def site_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the input of every converted site [P, D] is put into the list as the model runs, on either route.

    A site's input is the hidden state behind its layer's norm, so states of all layers are of one scale.
    """
    states: list[Tensor] = []

    def keep(slot: LinearizedAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x_BTD = args[0] if args else kwargs["hidden_states"]
        valid_BT = slot.validity(x_BTD, kwargs)
        states.append(x_BTD[every_token(x_BTD) if valid_BT is None else valid_BT])

    hooks = [slot.register_forward_pre_hook(keep, with_kwargs=True) for slot in linearized_sites(model)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def hidden_error(teacher_PD: Sequence[Tensor], student_PD: Sequence[Tensor]) -> Tensor:
    """Squared distance over the teacher's squared length, mean over tokens and states.

    States that no mixer comes before are left out: they are equal. Computed in float32. A token's error does not depend
    on the others.
    """
    errors = []
    for teacher, student in zip(teacher_PD, student_PD, strict=True):
        if student.requires_grad:
            wanted, found = teacher.float(), student.float()
            length_P = wanted.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
            errors.append(((found - wanted).square().sum(-1) / length_P).mean())
    return torch.stack(errors).mean()
