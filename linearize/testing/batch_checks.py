"""What a teacher's batches have to hold to: kinds of tokens, loss masks, padding, prompts and answers.

Letters: B batch, T tokens, X vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TeacherAdapter
from linearize.protocols.conversation import Conversation
from linearize.testing.numbers import assert_values_near
from linearize.testing.teacher_inputs import ids_of, load, logits_of


def check_batches(adapter: TeacherAdapter, conversations: Sequence[Conversation], tolerance: float) -> None:
    """Fails unless a batch says what each token is, and each row is and gives what it does alone.

    Args:
        tolerance: how far a row's logits may be from the row's alone, relative to the largest.
    """
    __tracebackhide__ = True
    model = load(adapter)
    together = adapter.batch(conversations)
    logits_BTX = logits_of(model, together)
    dtypes = together.loss_mask_BT.dtype, together.token_kind_BT.dtype
    assert dtypes == (torch.bool, torch.uint8), f"loss_mask_BT is bool and token_kind_BT uint8; got {dtypes}"
    valid_BT = together.inputs["attention_mask"].bool()
    shapes = {tuple(one.shape) for one in (together.loss_mask_BT, together.token_kind_BT, valid_BT)}
    assert len(shapes) == 1, f"loss_mask_BT, token_kind_BT and attention_mask differ in shape: {shapes}"
    assert torch.equal(together.token_kind_BT == TOKEN_PAD, ~valid_BT), "pads, and pads alone, are TOKEN_PAD"
    assert not bool((together.loss_mask_BT & (together.token_kind_BT == TOKEN_PAD)).any()), "no loss at pads"
    assert not bool((together.loss_mask_BT & (together.token_kind_BT == TOKEN_IMAGE)).any()), "none at images"
    for row, conversation in enumerate(conversations):
        alone = adapter.batch([conversation])
        length = int(valid_BT[row].sum())
        assert bool(valid_BT[row, :length].all()), "whole conversations are padded on the right"
        assert ids_of(together, row) == ids_of(alone, 0), f"'{conversation.id}' has other tokens in a batch than alone"
        assert torch.equal(together.loss_mask_BT[row, :length], alone.loss_mask_BT[0]), (
            f"the loss of '{conversation.id}' covers other tokens in a batch than alone"
        )
        counted = adapter.num_tokens(conversation)
        assert counted == length, f"num_tokens('{conversation.id}') is {counted}, but batch() makes {length} tokens"
        text = adapter.decode(together.inputs["input_ids"][row][together.loss_mask_BT[row]][None])[0]
        for turn in conversation.turns:
            assert turn.answer in text, f"the loss of '{conversation.id}' does not cover '{turn.answer}'"
            assert turn.question.split("\n")[-1] not in text, f"the loss of '{conversation.id}' covers a question"
        assert_values_near(
            logits_BTX[row, :length],
            logits_of(model, alone)[0],
            tolerance,
            f"look at mask, positions and which row gets which pixels: against '{conversation.id}' alone, its "
            "logits in a padded batch are",
        )
    marked = [bool((kinds == TOKEN_IMAGE).any()) for kinds in together.token_kind_BT]
    due = [bool(conversation.images) for conversation in conversations]
    assert marked == due, f"token_kind_BT marks image tokens in rows {marked}; the rows with images are {due}"


def check_prompts(adapter: TeacherAdapter, conversations: Sequence[Conversation]) -> None:
    """Fails unless prompts are padded on the left, and are the conversations up to their last answers."""
    __tracebackhide__ = True
    whole, prompts = adapter.batch(conversations), adapter.batch(conversations, for_generation=True)
    assert not prompts.loss_mask_BT.any(), "a prompt has no answer that a loss could cover"
    for row, conversation in enumerate(conversations):
        valid = prompts.inputs["attention_mask"][row].bool()
        length = int(valid.sum())
        assert bool(valid[len(valid) - length :].all()), "prompts are padded on the left"
        ids = ids_of(whole, row)
        answers = whole.loss_mask_BT[row][whole.inputs["attention_mask"][row].bool()].tolist()
        last = max(place for place in range(len(ids)) if answers[place] and not (place and answers[place - 1]))
        assert ids_of(prompts, row) == ids[:length], (
            f"the prompt of '{conversation.id}' is not how the whole conversation begins: {ids_of(prompts, row)} "
            f"against {ids[:length]}"
        )
        assert length == last, (
            f"the prompt of '{conversation.id}' has {length} tokens, but its last answer begins behind {last}: "
            "the prompt ends with whatever opens an answer"
        )


def check_answer(adapter: TeacherAdapter, conversation: Conversation) -> None:
    """Fails unless the ids that the loss covers decode to the answer of a conversation of one turn."""
    __tracebackhide__ = True
    batch = adapter.batch([conversation])
    ids_BT = batch.inputs["input_ids"][batch.loss_mask_BT][None]
    text, answer = adapter.decode(ids_BT), conversation.turns[-1].answer
    assert text == [answer], (
        f"the tokens that the loss covers decode to {text}; expected ['{answer}']: decode() leaves out special "
        "tokens, and loss_mask_BT covers the answer and the token that ends it"
    )
