"""How far a student's next-token distributions are from its teacher's. Letters: B batch, T tokens, D width,
P positions that predict an answer token, W vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from linearize.distill.losses import kl_sum
from linearize.errors import RunError
from linearize.evaluate.modes import inference
from linearize.evaluate.order import length_ordered_batches
from linearize.student.convert import teacher_route

if TYPE_CHECKING:
    from torch import Tensor

    from linearize.protocols import Batch, TeacherAdapter
    from linearize.protocols.conversation import Conversation

POSITIONS_AT_ONCE = 256
"""Rows whose log-probabilities stand in fp32 at one time: 95 MB a model at a vocabulary of 92 544."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over answer tokens, so that tasks can be added up.

    Attributes:
        kl_sum: KL(teacher || student) in nats, summed.
        same_top1: answer tokens at which both rank the same token first.
        tokens: answer tokens looked at, end-of-turn tokens included.
    """

    kl_sum: float = 0.0
    same_top1: int = 0
    tokens: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.kl_sum + other.kl_sum, self.same_top1 + other.same_top1, self.tokens + other.tokens)

    @property
    def kl(self) -> float | None:
        """KL(teacher || student) in nats per answer token; None without any token."""
        return self.kl_sum / self.tokens if self.tokens else None

    @property
    def top1(self) -> float | None:
        """Share of answer tokens with the same first choice; None without any token."""
        return self.same_top1 / self.tokens if self.tokens else None


def measure_agreement(
    model: Any,
    adapter: TeacherAdapter,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Agreement:
    """Compares both routes of a converted model on conversations with their right answers filled in.

    Args:
        progress: called after each batch with the number of conversations in it.

    Raises:
        RunError: the divergence is not finite.
    """
    total = Agreement()
    with inference(model):
        for indices in length_ordered_batches(conversations, batch_size, adapter.num_tokens):
            batch = adapter.batch([conversations[index] for index in indices]).to(model.device)
            with teacher_route(model):
                teacher_PW = answer_logits(model, batch)
            total += compare_logits(teacher_PW, answer_logits(model, batch))
            if progress is not None:
                progress(len(indices))
    if not math.isfinite(total.kl_sum):
        raise RunError(
            f"the KL divergence between teacher and student over {total.tokens} answer tokens is {total.kl_sum}, "
            "though all trained weights are finite: a model's logits overflow in this dtype. "
            "Use run.dtype = 'float32' or 'bfloat16'"
        )
    return total


def compare_logits(teacher_PW: Tensor, student_PW: Tensor) -> Agreement:
    """The agreement of two sets of logits in any dtype; the softmax is taken in fp32, a few positions at a time."""
    total = Agreement()
    for teacher, student in zip(teacher_PW.split(POSITIONS_AT_ONCE), student_PW.split(POSITIONS_AT_ONCE), strict=True):
        same = int((teacher.argmax(-1) == student.argmax(-1)).sum())
        total += Agreement(float(kl_sum(teacher, student)), same, teacher.shape[0])
    return total


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [P, W] at the positions whose next token belongs to an answer, row by row."""
    # The token at t is predicted at t - 1; nothing predicts the first token of a row.
    predicts_BT = functional.pad(batch.loss_mask_BT[:, 1:], (0, 1), value=False)
    head = model.get_output_embeddings()
    if head is None:
        return model(**batch.inputs, use_cache=False).logits[predicts_BT]
    with _only_positions(head, predicts_BT):
        return model(**batch.inputs, use_cache=False).logits[0]


@contextmanager
def _only_positions(head: torch.nn.Module, chosen_BT: Tensor) -> Iterator[None]:
    """The output layer sees the chosen positions alone, so that logits of all B·T positions never exist."""

    def choose(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD, *others = inputs
        return hidden_BTD[chosen_BT][None], *others

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
