"""Whole conversations to batches: ids, loss mask, token kinds, pixel values.

The template is cut at added tokens and a question at its image marks, and each stretch between is encoded as one, also
where an answer continues the stretch that its role string began; then the tokens that the prompt alone would give
belong to the prompt, and the rest to the answer. Added tokens that a person typed are text like any other.

Letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from linearize.errors import DataError
from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT, Batch
from linearize.protocols.conversation import IMAGE_MARK, Conversation
from linearize_hovle.processing import HovleProcessor
from linearize_hovle.prompt import IMAGE_END, IMAGE_START, Piece, get_template, with_image_marks
from linearize_hovle.tokenization import HovleTokenizer


def make_batch(
    processor: HovleProcessor, conversations: Sequence[Conversation], *, for_generation: bool = False
) -> Batch:
    """Inputs, loss mask and token kinds of conversations.

    Training: whole conversations, padded on the right; the loss covers each answer and the mark that closes it.
    Generation: prompts up to the last question, padded on the left; no loss.

    Raises:
        DataError: no conversation, or one whose ``<image>`` marks and images differ in number; names it.
    """
    if not conversations:
        raise DataError("a batch of no conversations was asked for; expected at least one")
    pixel_values, tiles = processor.pixels([image for one in conversations for image in one.images])
    rows, taken = [], 0
    for conversation in conversations:
        own = tiles[taken : (taken := taken + len(conversation.images))]
        rows.append(encode_conversation(processor, conversation, own, for_generation=for_generation))
    batch = _padded(processor, rows, on_the_left=for_generation)
    if tiles:
        batch.inputs["pixel_values"] = torch.from_numpy(pixel_values)
    return batch


def make_text_batch(processor: HovleProcessor, rows: Sequence[Sequence[int]]) -> Batch:
    """Rows of running text, padded on the right; the loss covers every token."""
    return _padded(processor, [(ids, True) for ids in rows], on_the_left=False)


def encode_document(tokenizer: HovleTokenizer, text: str) -> list[int]:
    """A document's ids between BOS, where the tokenizer adds one, and EOS.

    Raises:
        DataError: sentencepiece itself reads a part of it as an added token.
    """
    ids: list[int] = tokenizer.sp_model.encode(text)  # not kept, as stretches of prompts are: no document comes twice
    _refuse_marks(tokenizer, ids, "the document")
    front = [tokenizer.bos_token_id] if tokenizer.add_bos_token else []
    return [*front, *ids, tokenizer.eos_token_id]


def _padded(
    processor: HovleProcessor, rows: Sequence[tuple[Sequence[int], Sequence[bool] | bool]], *, on_the_left: bool
) -> Batch:
    """Ids, and for each whether the loss covers it, as a batch without pixels."""
    length = max(len(ids) for ids, _ in rows)
    ids_BT = np.full((len(rows), length), processor.tokenizer.pad_token_id, dtype=np.int64)
    loss_BT = np.zeros(ids_BT.shape, dtype=bool)
    valid_BT = np.zeros(ids_BT.shape, dtype=bool)
    for row, (ids, is_target) in enumerate(rows):
        place = slice(length - len(ids), None) if on_the_left else slice(len(ids))
        ids_BT[row, place], loss_BT[row, place], valid_BT[row, place] = ids, is_target, True
    kind_BT = np.where(ids_BT == processor.image_token_id, TOKEN_IMAGE, TOKEN_TEXT).astype(np.uint8)
    kind_BT[~valid_BT] = TOKEN_PAD
    inputs: dict[str, Tensor] = {
        "input_ids": torch.from_numpy(ids_BT),
        "attention_mask": torch.from_numpy(valid_BT.astype(np.int64)),
    }
    return Batch(inputs, torch.from_numpy(loss_BT), torch.from_numpy(kind_BT))


def encode_conversation(
    processor: HovleProcessor, conversation: Conversation, tiles: Sequence[int], *, for_generation: bool
) -> tuple[list[int], list[bool]]:
    """Ids of one conversation, and for each whether it is an answer's, its closing mark included.

    Args:
        tiles: number of tiles of each of its images.
    """
    turns: list[tuple[str, str | None]] = [(turn.question, turn.answer) for turn in conversation.turns]
    if not conversation.num_image_marks():
        turns[0] = (with_image_marks(turns[0][0], len(tiles)), turns[0][1])
    if for_generation:
        turns[-1] = (turns[-1][0], None)
    marks = sum(question.count(IMAGE_MARK) for question, _ in turns)
    if marks != len(tiles):
        raise DataError(
            f"conversation '{conversation.id}' holds {marks} {IMAGE_MARK} marks for {len(conversation.images)} images; "
            "each image needs its own mark"
        )
    tokenizer = processor.tokenizer
    ids: list[int] = [tokenizer.bos_token_id] if tokenizer.add_bos_token else []
    flags = [False] * len(ids)
    before = ""
    for given, text, is_answer in _parts(processor, get_template(processor.template).pieces(turns), tiles):
        if given:
            ids += given
            before = ""
        else:
            alone, joint = tokenizer.stretch(before), tokenizer.stretch(before + text)
            common = _common_length(alone, joint)
            start = len(ids) - len(alone) + common
            del ids[start:], flags[start:]
            ids += joint[common:]
            _refuse_marks(tokenizer, joint[common:], f"conversation '{conversation.id}'")
            before += text
        flags += [is_answer and not for_generation] * (len(ids) - len(flags))
    return ids, flags


def _refuse_marks(tokenizer: HovleTokenizer, ids: Sequence[int], what: str) -> None:
    """Refuses text that sentencepiece itself reads as an added token: one may sit on an id whose name can be typed."""
    for token in ids:
        if mark := tokenizer.mark(token):
            raise DataError(
                f"{what} holds the text {tokenizer.sp_model.id_to_piece(token)!r}, which the "
                f"checkpoint's tokenizer reads as {mark}; leave it out"
            )


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _parts(
    processor: HovleProcessor, pieces: Sequence[Piece], tiles: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], str, bool]]:
    """(ids, "", is_answer) for added tokens and images, ((), text, is_answer) for the text between them."""
    tokenizer = processor.tokenizer
    start, end = tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
    counts = iter(tiles)
    for piece in pieces:
        chunks = [piece.text] if piece.is_answer or piece.is_markup else piece.text.split(IMAGE_MARK)
        for number, chunk in enumerate(chunks):
            if number:
                run = (processor.image_token_id,) * (processor.num_image_tokens * next(counts))
                yield (start, *run, end), "", False
            for token, text in tokenizer.cut(chunk) if piece.is_markup else [(-1, chunk)] if chunk else []:
                yield ((token,), "", piece.is_answer) if token >= 0 else ((), text, piece.is_answer)
