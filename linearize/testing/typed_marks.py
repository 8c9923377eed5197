"""That people may type what a teacher's prompts are made of: in a question or an answer it is text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from linearize.errors import DataError
from linearize.protocols import IMAGE_MARK, TOKEN_IMAGE, Batch, Conversation, ReadsText, TeacherAdapter, Turn
from linearize.testing.teacher_inputs import ids_of


def check_typed_marks(adapter: TeacherAdapter, conversation: Conversation) -> None:
    """Fails unless a conversation that spells the tokenizer's special tokens has as many of them as one that does not.

    An adapter may also refuse such a conversation with a DataError, from ``num_tokens`` and ``batch`` alike.
    """
    __tracebackhide__ = True
    tokenizer, special = _special_tokens(adapter)
    spelt = "".join(special.values())
    first, *others = conversation.turns
    typed = Turn(f"{first.question} {spelt.replace(IMAGE_MARK, '')}", f"{first.answer} {spelt}")
    asked = replace(conversation, turns=(typed, *others))
    try:
        counted, batch = adapter.num_tokens(asked), adapter.batch([asked])
    except DataError:
        for read in (adapter.num_tokens, lambda one: adapter.batch([one])):
            try:
                read(asked)
            except DataError:
                continue
            raise AssertionError("num_tokens() and batch() have to refuse the same conversations") from None
        return
    plain = adapter.batch([conversation])
    for token, text in special.items():
        found, expected = (ids_of(one, 0).count(token) for one in (batch, plain))
        assert found == expected, (
            f"typed by a person, {text!r} becomes the token {token}: {found} of them in a conversation that has "
            f"{expected} without it. Encode the template's own pieces with special tokens, and what people wrote with "
            "split_special_tokens=True; or refuse such a conversation with a DataError"
        )
    images = [int((one.token_kind_BT == TOKEN_IMAGE).sum()) for one in (batch, plain)]
    assert images[0] == images[1], f"typed marks make {images[0]} image tokens of {images[1]}"
    ids = ids_of(batch, 0)
    assert counted == len(ids), f"num_tokens() is {counted}, but batch() makes {len(ids)} tokens"
    if tokenizer.unk_token_id not in ids:  # a tiny vocabulary may lack the characters
        answer = _answer_text(adapter, batch)
        assert _squeezed(typed.answer) in _squeezed(answer), f"the answer {typed.answer!r} comes back as {answer!r}"


def check_typed_text(adapter: TeacherAdapter, text: str) -> None:
    """The same for running text, which ``text_ids`` may refuse too."""
    __tracebackhide__ = True
    assert isinstance(adapter, ReadsText)
    _, special = _special_tokens(adapter)
    try:
        [typed] = adapter.text_ids([f"{text} {''.join(special.values())}"])
    except DataError:
        return
    [plain] = adapter.text_ids([text])
    for token, spelt in special.items():
        found, expected = typed.count(token), plain.count(token)
        assert found == expected, (
            f"{spelt!r} in running text becomes the token {token}: {found} of them in a text that has {expected} "
            "without it. Encode texts with split_special_tokens=True, or refuse such a one with a DataError"
        )


def _special_tokens(adapter: TeacherAdapter) -> tuple[Any, dict[int, str]]:
    """The tokenizer, and how its special tokens are spelt."""
    processor = adapter.processor()
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    return tokenizer, {
        int(token): str(added.content)
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and token != tokenizer.unk_token_id
    }


def _answer_text(adapter: TeacherAdapter, batch: Batch) -> str:
    return adapter.decode(batch.inputs["input_ids"][0][batch.loss_mask_BT[0]][None])[0]


def _squeezed(text: str) -> str:
    return "".join(text.split())
