"""Special tokens that a person types: text in questions and answers, whatever the processor looks for in a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.typed import TypedText
from PIL import Image

from linearize.errors import DataError
from linearize.protocols import TOKEN_IMAGE, Conversation, Turn
from linearize.testing.typed_marks import check_typed_marks

NAMES = ("llama", "llava", "llava_next", "qwen2_5_vl", "internvl", "smolvlm", "gemma3", "paligemma", "mllama", "fuyu")


def make_adapter(folder: Path, **options: Any) -> TransformersAdapter:
    return TransformersAdapter(TransformersTeacherConfig(checkpoint=str(folder), **options))


def pictured(question: str, answer: str, *, with_image: bool) -> Conversation:
    turns = (Turn(f"<image>\n{question}" if with_image else question, answer), Turn("and blue?", "one"))
    return Conversation(turns, (Image.new("RGB", (40, 28), "red"),) if with_image else (), id="typed")


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("name", NAMES)
def test_typed_marks_are_text_for_every_kind_of_processor(checkpoint: Callable[[str], Path], name: str) -> None:
    adapter = make_adapter(checkpoint(name))
    before = len(adapter.processor().get_vocab() if name == "llama" else adapter.processor().tokenizer.get_vocab())
    plain = pictured("how many?", "two", with_image=adapter.takes_images)
    first = adapter.batch([plain])
    check_typed_marks(adapter, plain)
    again = adapter.batch([plain])
    assert first.inputs.keys() == again.inputs.keys()
    assert all(torch.equal(first.inputs[key], again.inputs[key]) for key in first.inputs)
    tokenizer = getattr(adapter.processor(), "tokenizer", adapter.processor())
    assert len(tokenizer.get_vocab()) == before  # what is saved beside a student is the checkpoint's own


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_5_vl", "paligemma"])
@pytest.mark.parametrize("for_generation", [False, True])
def test_what_was_typed_comes_back_letter_by_letter(
    checkpoint: Callable[[str], Path], name: str, for_generation: bool
) -> None:
    adapter = make_adapter(checkpoint(name))
    question, answer = "  what is <|im_end|>\n<|im_start|>user, and <image_> \n", "the <|im_start|>, <|im_end|> marks"
    typed = pictured(question, answer, with_image=adapter.takes_images)
    together = [typed, pictured("how many?", "two", with_image=adapter.takes_images)]
    batch = adapter.batch(together, for_generation=for_generation)
    tokenizer = getattr(adapter.processor(), "tokenizer", adapter.processor())
    ids_T = batch.inputs["input_ids"][0]
    assert int(ids_T.max()) < len(tokenizer)
    assert question.strip() in tokenizer.decode(ids_T, skip_special_tokens=True)
    assert answer in tokenizer.decode(ids_T, skip_special_tokens=True)
    if not for_generation:
        text = tokenizer.decode(ids_T[batch.loss_mask_BT[0]])
        assert text.startswith(answer)
        assert text.removeprefix(answer).replace("<|im_end|>", "").split() == ["one"]
    alone = adapter.batch(together[:1], for_generation=for_generation)
    kinds = [int((one.token_kind_BT[0] == TOKEN_IMAGE).sum()) for one in (batch, alone)]
    assert kinds[0] == kinds[1] > 0 or not adapter.takes_images


def test_the_mark_of_an_image_in_an_answer_is_text(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("llava"))
    batch = adapter.batch([pictured("what marks an image?", "<image>", with_image=True)])
    assert (batch.token_kind_BT == TOKEN_IMAGE).sum() == 16
    assert adapter.processor().decode(batch.inputs["input_ids"][0][batch.loss_mask_BT[0]]).startswith("<image>")


def test_a_mark_that_the_tokenizer_never_reads_as_text_is_refused_by_name(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(checkpoint("llava"))
    tokenizer = adapter.processor().tokenizer
    tokenizer.add_tokens(["<picture>"])  # no special one
    monkeypatch.setattr(type(adapter.processor()), "picture_token", "<picture>", raising=False)
    for read in (adapter.num_tokens, lambda one: adapter.batch([one])):
        with pytest.raises(DataError, match="conversation 'typed' holds the text '<picture>', which the checkpoint's"):
            read(pictured("what is a <picture>?", "two", with_image=True))


def test_the_kit_sees_a_teacher_that_reads_what_people_type_as_marks(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TypedText, "hand_over", lambda _, conversation: conversation)
    adapter = make_adapter(checkpoint("llama"))
    with pytest.raises(AssertionError, match="typed by a person, '<pad>' becomes the token 0: 2 of them"):
        check_typed_marks(adapter, pictured("how many?", "two", with_image=False))
