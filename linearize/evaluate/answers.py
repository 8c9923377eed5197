"""Answers by greedy generation. Letters: B batch, T prompt tokens, N new tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from linearize.evaluate.modes import inference
from linearize.evaluate.order import length_ordered_batches

if TYPE_CHECKING:
    from torch import Tensor

    from linearize.protocols import TeacherAdapter
    from linearize.protocols.conversation import Conversation


def generate_answers(
    model: Any,
    adapter: TeacherAdapter,
    questions: Sequence[Conversation],
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's greedy answer to each question, in the order of ``questions``.

    Args:
        model: a transformers model; its generation_config names the tokens that end an answer.
        batch_size: questions that are answered at once.
        max_new_tokens: an answer that has not ended by then is cut there.
        progress: called after each batch with the number of questions that it answered.
    """
    answers = [""] * len(questions)
    ends = _end_ids(model)
    with inference(model):
        for indices in length_ordered_batches(questions, batch_size, adapter.num_tokens):
            batch = adapter.batch([questions[index] for index in indices], for_generation=True).to(model.device)
            ids_BT = model.generate(
                **batch.inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad_id(model)
            )
            new_BN = ids_BT[:, batch.inputs["input_ids"].shape[1] :]
            for index, text in zip(indices, adapter.decode(_only_ends_after_first(new_BN, ends)), strict=True):
                answers[index] = text
            if progress is not None:
                progress(len(indices))
    return answers


def _end_ids(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return []
    return list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def pad_id(model: Any) -> int:
    """What fills finished rows; transformers would guess the same with a warning per batch."""
    pad = model.generation_config.pad_token_id
    return int(pad) if pad is not None else next(iter(_end_ids(model)), 0)


def _only_ends_after_first(ids_BN: Tensor, ends: list[int]) -> Tensor:
    """The ids with everything behind a row's first end token replaced by that kind of token.

    The padding of a finished row need not be a special token of every tokenizer, and would then be decoded as text.
    """
    if not ends:
        return ids_BN
    is_end_BN = torch.isin(ids_BN, torch.tensor(ends, device=ids_BN.device))
    behind_BN = is_end_BN.cumsum(1) - is_end_BN.long() > 0
    return ids_BN.masked_fill(behind_BN, ends[0])
