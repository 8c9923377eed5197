"""Which tokens are an answer's, whatever the chat template and however the processor expands images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from PIL import Image

from linearize.errors import CheckpointError, DataError
from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT
from linearize.protocols.conversation import Conversation, Turn

# The styles of templates on the hub: turn marks of special tokens, none at all, a first token of their own, and one
# that writes something before the last answer only.
VICUNA = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% endif %}{% endfor %}{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}<think>\n\n"
    "</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# After Qwen2.5-VL: a system message of its own accord. After LLaVA-OneVision: a message's images before its words, and
# its words on a line of their own. After InternVL: each image on a line of its own.
SYSTEM_FIRST = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nanswer the question<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGES_FIRST = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + ' ' }}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ '\n' + p['text'] }}{% endgeneration %}{% else %}{{ '\n' + p['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IMAGE_LINES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if p['type'] == 'image' else p['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOUTING = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
DOUBLED = "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}"

WORDS = Conversation((Turn("how many?", " two green "), Turn("and blue?", "one")), id="words")


def make_adapter(folder: Path, **options: Any) -> TransformersAdapter:
    return TransformersAdapter(TransformersTeacherConfig(checkpoint=str(folder), **options))


def answers(adapter: TransformersAdapter, conversation: Conversation) -> str:
    batch = adapter.batch([conversation])
    text: str = adapter.processor().decode(batch.inputs["input_ids"][0][batch.loss_mask_BT[0]])
    return text


@pytest.mark.parametrize("template", ["", GEMMA, THINKING], ids=["own", "gemma", "thinking"])
def test_the_loss_covers_answers_with_their_end_marks(checkpoint: Callable[[str], Path], template: str) -> None:
    adapter = make_adapter(checkpoint("llama"), chat_template=template)
    assert answers(adapter, WORDS) == "two green<|im_end|>one<|im_end|>"


def test_a_template_that_writes_the_first_token_gets_no_second_one(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("llama"), chat_template=GEMMA)
    ids = adapter.batch([WORDS]).inputs["input_ids"][0].tolist()
    assert ids.count(adapter.processor().bos_token_id) == 1


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 120, 30))


@pytest.mark.parametrize("template", ["", VICUNA], ids=["own", "vicuna"])
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_answers_between_images_are_found(checkpoint: Callable[[str], Path], name: str, template: str) -> None:
    adapter = make_adapter(checkpoint(name), chat_template=template)
    turns = (
        Turn("<image>\nhow many red?", "two green"),
        Turn("and here? <image>", "one"),
        Turn("<image> the same?", "one"),
    )
    pictures = (picture(40, 28), picture(16, 48), picture(20, 20))
    # Where no mark ends an answer, its last token may hold the space behind it.
    assert answers(adapter, Conversation(turns, pictures)).replace("<|im_end|>", "").replace(" ", "") == (
        "two green one one".replace(" ", "")
    )


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize(
    ("name", "template"),
    [("qwen2_5_vl", SYSTEM_FIRST), ("llava_onevision", IMAGES_FIRST), ("internvl", IMAGE_LINES)],
    ids=["qwen2_5_vl", "llava_onevision", "internvl"],
)
def test_answers_are_found_in_the_styles_of_the_most_used_families(
    checkpoint: Callable[[str], Path], name: str, template: str
) -> None:
    """With images before, between and behind the words, alone and beside a row without any."""
    adapter = make_adapter(checkpoint(name), chat_template=template)
    turns = (Turn("<image>\nhow many red?", "two green"), Turn("and here? <image>", "one"), Turn("which?", "blue"))
    pictured = Conversation(turns, (picture(40, 28), picture(16, 48)), id="pictured")
    assert answers(adapter, pictured) == "two green<|im_end|>one<|im_end|>blue<|im_end|>"
    together = adapter.batch([WORDS, pictured])
    for row, conversation in enumerate((WORDS, pictured)):
        alone, length = adapter.batch([conversation]), adapter.num_tokens(conversation)
        assert together.inputs["input_ids"][row, :length].tolist() == alone.inputs["input_ids"][0].tolist()
        assert together.loss_mask_BT[row, :length].tolist() == alone.loss_mask_BT[0].tolist()
        assert int(together.inputs["attention_mask"][row].sum()) == length
        prompt = adapter.batch([conversation], for_generation=True).inputs["input_ids"][0].tolist()
        tokenizer = adapter.processor().tokenizer
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_answers_are_found_where_images_bring_line_breaks_that_merge(checkpoint: Callable[[str], Path]) -> None:
    """Gemma 3 writes two line breaks around an image."""
    adapter = make_adapter(checkpoint("gemma3"))
    turns = (Turn("\n<image>\n\nhow many?", "two"), Turn("<image>", "green"))
    assert answers(adapter, Conversation(turns, (picture(8, 8), picture(9, 9)))) == "two<|im_end|>green<|im_end|>"


def test_each_token_has_its_kind_and_pads_are_on_the_side_that_is_asked_for(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("llava"))
    pair = [Conversation((Turn("how many?", "two"),), (picture(20, 20),)), Conversation((Turn("red", "1"),))]
    whole, prompts = adapter.batch(pair), adapter.batch(pair, for_generation=True)
    for batch in (whole, prompts):
        assert torch.equal(batch.token_kind_BT == TOKEN_PAD, batch.inputs["attention_mask"] == 0)
        assert (batch.token_kind_BT == TOKEN_IMAGE).sum(1).tolist() == [16, 0]
    assert whole.token_kind_BT[1, 0] == TOKEN_TEXT
    assert whole.token_kind_BT[1, -1] == TOKEN_PAD
    assert prompts.token_kind_BT[1, 0] == TOKEN_PAD
    assert not prompts.loss_mask_BT.any()
    ending = adapter.processor().tokenizer.decode(prompts.inputs["input_ids"][1])
    assert ending.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ["llava_next", "smolvlm", "gemma3"])
def test_the_number_of_tokens_is_known_for_images_of_sizes_that_were_met_and_of_others(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    adapter = make_adapter(checkpoint(name))
    images = (picture(40, 28), picture(16, 48))
    one = Conversation((Turn("<image>\nhow many <image>?", "two"),), images)
    again = Conversation((Turn("<image> and <image> red", "green square"),), images[::-1])
    for conversation in (one, again, one):
        assert adapter.num_tokens(conversation) == int(adapter.batch([conversation]).inputs["attention_mask"].sum())


def test_mllama_is_asked_as_its_own_processor_would_ask(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("mllama"))
    first, second = picture(40, 28), picture(9, 30)
    conversations = [
        Conversation((Turn("<image>\nhow many?", "two"), Turn("<image>\nred?", "one")), (first, second)),
        Conversation((Turn("<image>\nblue?", "one"),), (second,)),
    ]
    texts = [adapter._batcher.template.prompt(one, for_generation=False).text for one in conversations]
    own = adapter.processor()(
        text=texts, images=[[first, second], [second]], padding=True, padding_side="right", return_tensors="pt"
    )
    batch = adapter.batch(conversations)
    assert batch.inputs.keys() == own.keys()
    for name, tensor in own.items():
        assert torch.equal(batch.inputs[name], tensor), name


@pytest.mark.filterwarnings("ignore:__array__")
def test_a_prefix_model_is_asked_as_its_own_processor_would_ask(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("paligemma"))
    conversation = Conversation((Turn("<image>\nhow many red?", "two green"),), (picture(40, 28),))
    own = adapter.processor()(
        text=["<image>how many red?"], suffix=["two green"], images=[picture(40, 28)], return_tensors="pt"
    )
    batch = adapter.batch([conversation])
    for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values"):
        assert torch.equal(batch.inputs[name], own[name]), name
    assert torch.equal(batch.loss_mask_BT, own["labels"] != -100)


def test_the_prefix_ends_at_the_first_answer_in_training_as_in_prompts(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("paligemma"))
    images = (picture(40, 28), picture(9, 9))
    conversation = Conversation((Turn("<image>\nhow many?", "two"), Turn("<image>\nred?", "one")), images)
    whole, prompt = (adapter.batch([conversation], for_generation=flag) for flag in (False, True))
    types, asked = whole.inputs["token_type_ids"][0], prompt.inputs["token_type_ids"][0]
    first = int(whole.loss_mask_BT[0].int().argmax())
    assert types.tolist() == [0] * first + [1] * (len(types) - first)
    assert torch.equal(types[: len(asked)], asked)
    assert len(asked) > first
    single = adapter.batch([Conversation(conversation.turns[:1], images[:1])], for_generation=True)
    assert single.inputs["token_type_ids"].tolist() == [[0] * first]


@pytest.mark.parametrize(
    ("template", "message"),
    [(SHOUTING, "leaves an answer out or repeats it"), (DOUBLED, "leaves an answer out or repeats it"),
     ("{{ nothing.here }}", "cannot render conversation 'words': UndefinedError")],
)  # fmt: skip
def test_templates_that_change_answers_are_refused(
    checkpoint: Callable[[str], Path], template: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_adapter(checkpoint("llama"), chat_template=template).batch([WORDS])


def test_conversations_that_do_not_fit_are_refused(checkpoint: Callable[[str], Path]) -> None:
    text, vision = make_adapter(checkpoint("llama")), make_adapter(checkpoint("llava"))
    with pytest.raises(DataError, match="a batch of no conversations"):
        text.batch([])
    with pytest.raises(DataError, match="has 1 images, but the teacher is a text model"):
        text.batch([Conversation((Turn("x", "y"),), (picture(8, 8),))])
    with pytest.raises(DataError, match="holds 2 <image> marks for 1 images"):
        vision.batch([Conversation((Turn("<image><image>", "y"),), (picture(8, 8),))])


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_what_a_processor_cannot_take_is_an_error_of_the_data(checkpoint: Callable[[str], Path], name: str) -> None:
    no_picture: Any = "words"
    adapter = make_adapter(checkpoint(name))
    with pytest.raises(DataError, match=r"Processor cannot take a batch that begins with .*how many\?.*: \w+Error: "):
        adapter.batch([Conversation((Turn("<image>\nhow many?", "two"),), (no_picture,))])


def test_a_picture_that_a_processor_refuses_by_its_size_is_refused_before_its_pixels_are_read(
    checkpoint: Callable[[str], Path],
) -> None:
    adapter = make_adapter(checkpoint("qwen2_5_vl"))
    wide = Conversation((Turn("<image>\nhow many?", "two"),), (picture(1, 300),), id="wide")
    for read in (adapter.num_tokens, lambda one: adapter.batch([one])):
        with pytest.raises(DataError, match=r"Processor cannot take a batch .* aspect ratio must be smaller than 200"):
            read(wide)


@pytest.mark.filterwarnings("ignore:__array__")
def test_grey_of_16_bits_comes_to_the_model_as_grey_of_8(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("llava"))
    shades = np.tile(np.arange(0, 256, 4, dtype=np.uint16), (64, 1))
    deep, plain = Image.fromarray(shades * 257), Image.fromarray(shades.astype(np.uint8)).convert("RGB")
    pixels = [
        adapter.batch([Conversation((Turn("<image>\nhow many?", "two"),), (one,))]).inputs["pixel_values"]
        for one in (deep, plain)
    ]
    assert torch.equal(*pixels)


def test_a_checkpoint_without_a_chat_template_asks_for_one(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for path in checkpoint("llama").iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"has no chat template.*set teacher\.chat_template"):
        make_adapter(tmp_path).processor()
    template = tmp_path / "plain.jinja"
    template.write_text(GEMMA)
    assert answers(make_adapter(tmp_path, chat_template=str(template)), WORDS) == "two green<|im_end|>one<|im_end|>"
    with pytest.raises(ValueError, match="neither Jinja text"):
        TransformersTeacherConfig(checkpoint="x", chat_template="no/such/file")


def test_answers_are_decoded_without_special_tokens(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("llava"))
    ids = adapter.processor().tokenizer("two<|im_end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert adapter.decode(ids) == ["two"]
