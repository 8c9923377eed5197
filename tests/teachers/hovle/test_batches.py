"""Processor and batches: tiles in the right places, masks over the right tokens, both ways to the same ids."""

from __future__ import annotations

import base64
from pathlib import Path

import linearize_hovle.registration  # noqa: F401
import numpy as np
import pytest
import torch
from linearize_hovle.batching import encode_conversation, make_batch
from linearize_hovle.processing import HovleProcessor
from linearize_hovle.prompt import TEMPLATES, get_template
from linearize_hovle.tokenization import HovleTokenizer
from PIL import Image
from transformers import AutoProcessor

from linearize.errors import DataError
from linearize.protocols.conversation import Conversation, Turn

SIDE, TOKENS = 28, 4


def image(width: int = SIDE, height: int = SIDE, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(params=sorted(TEMPLATES))
def processor(request: pytest.FixtureRequest, tokenizer: HovleTokenizer) -> HovleProcessor:
    return HovleProcessor(tokenizer, image_size=SIDE, num_image_tokens=TOKENS, template=request.param)


TALK = Conversation(
    turns=(Turn("<image>\nhow many red triangles?", "two"), Turn("and <image>?", "the 图 circle")),
    images=(image(), image(2 * SIDE, SIDE, seed=1)),
    id="talk",
)
SHORT = Conversation(turns=(Turn("user", "3"),), id="short")


def test_the_loss_covers_answers_and_their_end_marks_only(processor: HovleProcessor) -> None:
    batch = make_batch(processor, [TALK, SHORT])
    texts = [
        processor.tokenizer.decode(row[mask])
        for row, mask in zip(batch.inputs["input_ids"], batch.loss_mask_BT, strict=True)
    ]
    assert texts == ["two<|im_end|>the 图 circle<|im_end|>", "3<|im_end|>"]


def test_ids_are_those_of_the_rendered_prompt(processor: HovleProcessor) -> None:
    prompt = get_template(processor.template).render([(turn.question, turn.answer) for turn in TALK.turns])
    plain = processor(images=list(TALK.images), text=prompt)
    batch = make_batch(processor, [TALK])
    assert torch.equal(plain["input_ids"], batch.inputs["input_ids"])
    assert torch.equal(plain["pixel_values"], batch.inputs["pixel_values"])


def test_a_generation_prompt_is_what_training_saw_before_the_last_answer(processor: HovleProcessor) -> None:
    whole = make_batch(processor, [TALK])
    prompts = make_batch(processor, [SHORT, TALK], for_generation=True)
    ids_T = prompts.inputs["input_ids"][1]
    assert torch.equal(ids_T, whole.inputs["input_ids"][0, : len(ids_T)])
    mask_BT = prompts.inputs["attention_mask"]
    assert mask_BT[0, 0] == 0
    assert mask_BT[:, -1].all()
    assert not prompts.loss_mask_BT.any()


def test_token_kinds_tell_pads_text_and_images_apart(processor: HovleProcessor) -> None:
    batch = make_batch(processor, [TALK, SHORT])
    kinds_BT, mask_BT = batch.token_kind_BT, batch.inputs["attention_mask"]
    assert torch.equal(kinds_BT == 0, mask_BT == 0)
    assert (kinds_BT == 2).sum(dim=1).tolist() == [(1 + 3) * TOKENS, 0]
    assert batch.inputs["pixel_values"].shape == (4, 3, SIDE, SIDE)


def test_an_answer_belongs_to_the_loss_even_where_it_merges_with_its_role_string(processor: HovleProcessor) -> None:
    for answer in ("\n\nred", " red", "red", "图"):
        batch = make_batch(processor, [Conversation(turns=(Turn("user", answer),))])
        prompt = make_batch(processor, [Conversation(turns=(Turn("user", answer),))], for_generation=True)
        ids_T, asked = batch.inputs["input_ids"][0], prompt.inputs["input_ids"].shape[1]
        assert processor.tokenizer.decode(ids_T).endswith(f"assistant\n{answer}<|im_end|>")
        assert int(batch.loss_mask_BT[0].long().argmax()) <= asked


def test_added_tokens_that_a_person_types_are_text(processor: HovleProcessor) -> None:
    typed = "is <IMG_CONTEXT></img><|im_end|>\n<|im_start|>user <s> </s> a mark?"
    question, answer = Turn(f"<image>\n{typed}", f"{typed} no"), Turn("and <image>?", "one")
    asked = Conversation((question, answer), TALK.images, id="typed")
    batch = make_batch(processor, [asked, SHORT])
    ids_T, loss_T = batch.inputs["input_ids"][0], batch.loss_mask_BT[0]
    assert (batch.token_kind_BT[0] == 2).sum() == (1 + 3) * TOKENS
    plain_T = make_batch(processor, [TALK]).inputs["input_ids"][0]
    for mark in ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<s>"):
        token = processor.tokenizer.convert_tokens_to_ids(mark)
        assert (ids_T == token).sum() == (plain_T == token).sum(), mark
    assert processor.tokenizer.decode(ids_T[loss_T]) == f"{typed} no<|im_end|>one<|im_end|>"
    assert processor.tokenizer.decode(ids_T).count(typed) == 2
    assert encode_conversation(processor, asked, [1, 3], for_generation=False)[0] == ids_T.tolist()


def test_text_that_sentencepiece_itself_reads_as_a_mark_is_refused(
    processor: HovleProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    monkeypatch.setattr(
        processor.tokenizer, "stretch", lambda text: (token,) if "[UNUSED_" in text else (9,) * len(text)
    )
    monkeypatch.setattr(type(processor.tokenizer.sp_model), "id_to_piece", lambda *_: "[UNUSED_TOKEN_145]")
    with pytest.raises(DataError, match=r"'odd' holds the text '\[UNUSED_TOKEN_145\]', .* reads as <\|im_end\|>"):
        make_batch(processor, [Conversation((Turn("what is [UNUSED_TOKEN_145]?", "one"),), id="odd")])


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (6000, 20)])
def test_narrow_pictures_are_cut_as_any_other(processor: HovleProcessor, size: tuple[int, int]) -> None:
    narrow = Conversation((Turn("<image>\nuser", "3"),), (Image.new("L", size, 9),), id="narrow")
    batch = make_batch(processor, [narrow])
    assert (batch.token_kind_BT == 2).sum() == processor.num_tiles(size) * TOKENS
    assert torch.isfinite(batch.inputs["pixel_values"]).all()


def test_text_only_batches_have_no_pixels(processor: HovleProcessor) -> None:
    assert "pixel_values" not in make_batch(processor, [SHORT]).inputs


def test_images_without_marks_go_in_front_of_the_first_question(processor: HovleProcessor) -> None:
    marked = Conversation(turns=(Turn("<image>\n<image>\nuser", "3"),), images=(image(), image()))
    bare = Conversation(turns=(Turn("user", "3"),), images=marked.images)
    first, second = make_batch(processor, [marked]), make_batch(processor, [bare])
    assert torch.equal(first.inputs["input_ids"], second.inputs["input_ids"])


def test_the_processor_takes_an_image_as_a_path_or_as_base64(processor: HovleProcessor, tmp_path: Path) -> None:
    """As its chat template hands over what a client of `transformers serve` sent."""
    picture, file = image(2 * SIDE, SIDE), tmp_path / "a.png"
    picture.save(file)
    expected = processor(images=picture, text="<image>")["pixel_values"]
    for text in (str(file), "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()):
        assert torch.equal(processor(images=[[text]], text="<image>")["pixel_values"], expected)


def test_marks_without_images_are_refused_by_the_conversation_s_name(processor: HovleProcessor) -> None:
    broken = Conversation(turns=(Turn("<image> and <image>", "3"),), images=(image(),), id="broken-7")
    with pytest.raises(DataError, match="'broken-7' holds 2 <image> marks for 1 images"):
        make_batch(processor, [broken])
    with pytest.raises(DataError, match="hold 1 <image> marks, but 0 images"):
        processor(text="<image> what?")


def test_tiles_of_the_right_size_are_copied_without_resizing(processor: HovleProcessor) -> None:
    picture = image(2 * SIDE, SIDE)
    values, counts = processor.pixels([picture])
    assert counts == [3]
    left = np.asarray(picture, dtype=np.float32)[:, :SIDE] / 255
    wanted = (left - np.array(processor.image_mean)) / np.array(processor.image_std)
    np.testing.assert_allclose(values[0], wanted.transpose(2, 0, 1), atol=1e-6)


def test_images_of_other_modes_become_colour(processor: HovleProcessor) -> None:
    grey = Image.new("L", (SIDE, SIDE), 128)
    assert processor.pixels([grey])[0].shape == (1, 3, SIDE, SIDE)


def test_a_saved_processor_loads_with_the_auto_class(processor: HovleProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, HovleProcessor)
    before, after = make_batch(processor, [TALK, SHORT]), make_batch(again, [TALK, SHORT])
    assert all(torch.equal(before.inputs[name], after.inputs[name]) for name in before.inputs)


def test_the_chat_template_renders_what_the_prompt_template_renders(processor: HovleProcessor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": 'how "many"\nare there?'}]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "sure?"},
    ]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    turns = [('<image>\nhow "many"\nare there?', "two"), ("sure?", None)]
    assert rendered == get_template(processor.template).render(turns)
    own = [{"role": "system", "content": "be brief"}, *messages[2:]]
    wanted = get_template(processor.template).render([("sure?", None)], system="be brief")
    assert processor.apply_chat_template(own, add_generation_prompt=True) == wanted


def test_prompts_of_a_batch_are_padded_on_the_left(processor: HovleProcessor) -> None:
    inputs = processor(images=[[image()], []], text=["<image> user", "how many green triangles are there?" * 3])
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].all()
