"""What a teacher's batches have to hold to: kinds of tokens, loss masks, padding, prompts and answers.

Letters: B batch, T tokens, X vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT, ReadsText, TeacherAdapter
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


def check_texts(adapter: TeacherAdapter, conversations: Sequence[Conversation], tolerance: float) -> None:
    """Fails unless running text is read as text, and a batch of rows gives what each row gives alone.

    Args:
        conversations: without images; their words are the text.
        tolerance: as for ``check_batches``.
    """
    __tracebackhide__ = True
    assert isinstance(adapter, ReadsText)
    model = load(adapter)
    words = ["\n".join(f"{turn.question} {turn.answer}" for turn in one.turns) for one in conversations]
    rows = adapter.text_ids(words)
    assert [adapter.text_ids([text])[0] for text in words] == rows, "text_ids() depends on what else it is given"
    processor = adapter.processor()
    unknown = getattr(processor, "tokenizer", processor).unk_token_id
    for text, ids in zip(words, rows, strict=True):
        if unknown in ids:  # a tiny vocabulary may lack the words
            continue
        decoded = adapter.decode(torch.tensor([ids]))[0]
        assert decoded.split() == text.split(), f"the tokens of {text!r} decode to {decoded!r}"
    batch = adapter.text_batch(rows)
    valid_BT = batch.inputs["attention_mask"].bool()
    assert torch.equal(batch.loss_mask_BT, valid_BT), "the loss covers every token of running text, and no pad"
    assert torch.equal(batch.token_kind_BT, torch.where(valid_BT, TOKEN_TEXT, TOKEN_PAD).to(torch.uint8))
    logits_BTX = logits_of(model, batch)
    for row, ids in enumerate(rows):
        assert ids_of(batch, row) == ids, f"row {row} has other tokens than it was given"
        assert bool(valid_BT[row, : len(ids)].all()), "rows are padded on the right"
        assert_values_near(
            logits_BTX[row, : len(ids)],
            logits_of(model, adapter.text_batch([ids]))[0],
            tolerance,
            f"look at mask and positions: against row {row} alone, its logits in a padded batch are",
        )
    whole = adapter.batch(conversations[:1])
    as_text = adapter.text_batch([ids_of(whole, 0)])
    if missing := sorted(whole.inputs.keys() - as_text.inputs.keys()):
        assert_values_near(
            logits_of(model, as_text),
            logits_of(model, whole),
            tolerance,
            f"text_batch() lacks {', '.join(missing)}, which batch() gives: against a conversation's, the logits of "
            "its tokens as running text are",
        )
