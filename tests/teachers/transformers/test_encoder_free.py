"""Teachers without a vision encoder: patches of pixels, or tokens of an image tokenizer, straight into the decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.attention import value_norm_eps
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.models import empty_model
from linearize_transformers.sites import find_sites
from linearize_transformers.support import VISION_FAMILIES
from PIL import Image
from transformers import CONFIG_MAPPING

from linearize.errors import CheckpointError
from linearize.protocols.conversation import Conversation, Turn

FAMILIES = {family.model_type: family for family in VISION_FAMILIES}


def make_adapter(folder: Path, **options: Any) -> TransformersAdapter:
    return TransformersAdapter(TransformersTeacherConfig(checkpoint=str(folder), **options))


def noise(width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def ask(*images: Image.Image, question: str = "how many red?") -> Conversation:
    return Conversation((Turn("<image>\n" * len(images) + question, "two green"),), images)


def written(adapter: TransformersAdapter, conversation: Conversation, **options: bool) -> str:
    ids = adapter.batch([conversation], **options).inputs["input_ids"][0]
    text: str = adapter.processor().tokenizer.decode(ids)
    return text


def without_template(folder: Path, made: Path) -> Path:
    """The same checkpoint as the hub has it."""
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (made / path.name).write_bytes(path.read_bytes())
    return made


def pixel_name(adapter: TransformersAdapter) -> str:
    """Of Fuyu's patches, before transformers 5.23 and since."""
    (name,) = {"pixel_values", "image_patches"} & adapter.batch([ask(noise(8, 8, 1))]).inputs.keys()
    return name


def test_fuyu_reads_a_picture_line_by_line_before_the_question(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """40 x 28 pixels are made 32 x 22 and cut into 4 x 3 patches of 8 x 8, the last line filled up with white."""
    adapter = make_adapter(without_template(checkpoint("fuyu"), tmp_path))
    line = "|SPEAKER|" * 4 + "|NEWLINE|"
    picture = noise(40, 28, 1)
    prompt = f"{line * 3}<s>how many red?<0x04>"
    assert written(adapter, ask(picture), for_generation=True) == prompt
    assert written(adapter, ask(picture)) == f"{prompt}two green<|im_end|>"
    pixels_CHW = adapter.processor().image_processor([[picture]], return_tensors="pt")["images"][0, 0]
    patches = adapter.batch([ask(picture)]).inputs[pixel_name(adapter)]
    for number, patch in enumerate(patches[0]):
        top, left = 8 * (number // 4), 8 * (number % 4)
        assert torch.equal(patch, pixels_CHW[:, top : top + 8, left : left + 8].permute(1, 2, 0).flatten())


def test_fuyu_keeps_the_patches_of_a_row_together(checkpoint: Callable[[str], Path]) -> None:
    """Whether the pictures have as many patches or not, and however many a row has."""
    adapter = make_adapter(checkpoint("fuyu"))
    model = adapter.load(dtype=torch.float32, device="cpu")
    for pictures in ((noise(32, 24, 1), noise(32, 24, 2)), (noise(32, 24, 1), noise(16, 24, 2))):
        rows = [ask(pictures[0]), ask(question="and blue?"), ask(*pictures, question="which?")]
        together = adapter.batch(rows)
        with torch.no_grad():
            logits_BTV = model(**together.inputs).logits
            for row, conversation in enumerate(rows):
                alone = adapter.batch([conversation]).inputs
                expected_TV = model(**alone).logits[0]
                # The same sums in another order.
                torch.testing.assert_close(logits_BTV[row, : len(expected_TV)], expected_TV, rtol=1e-3, atol=1e-3)


def test_chameleon_writes_no_separator_but_the_templates(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = make_adapter(without_template(checkpoint("chameleon"), tmp_path))
    tokenizer = adapter.processor().tokenizer
    tokenizer.sep_token = "<eos>"
    picture = "<racm3:break>" + "<image>" * 16 + "<eoss>"
    assert written(adapter, ask(noise(16, 16, 1))) == f"{picture}how many red?<eos>two green<|im_end|>"
    assert written(adapter, ask(), for_generation=True) == "how many red?<eos>"


def test_layers_of_an_image_tokenizer_inside_the_decoder_are_no_sites() -> None:
    """Chameleon's decoder holds one, with attention of its own."""
    config = CONFIG_MAPPING["chameleon"](**FAMILIES["chameleon"].config)
    model: Any = empty_model(config)
    assert any("vqmodel" in name and name.endswith("attn_1") for name, _ in model.get_decoder().named_modules())
    assert [found.site.path for found in find_sites(model)] == [f"model.layers.{n}.self_attn" for n in range(2)]


@pytest.mark.parametrize(("num_shared", "refused"), [(0, False), (1, True)])
def test_attention_that_could_share_keys_and_values_is_a_site_where_it_does_not(num_shared: int, refused: bool) -> None:
    family = FAMILIES["gemma4_unified"]
    layers = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    text = family.config["text_config"] | layers | {"num_kv_shared_layers": num_shared}
    if refused:  # each kind of layer that shares needs one of its kind that does not
        text["layer_types"] = ["full_attention"] * 3
    model = empty_model(CONFIG_MAPPING["gemma4_unified"](**family.config | {"text_config": text}))
    if refused:
        with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn.*cross-layer KV sharing"):
            find_sites(model)
        return
    found = find_sites(model)
    assert [(one.form.name, one.shape.key_dim, one.shape.num_key_value_heads) for one in found] == [
        ("q, k, v, o", 8, 2), ("q, k as v too, o", 16, 1), ("q, k as v too, o", 16, 1),
    ]  # fmt: skip


def test_a_norm_of_values_that_is_not_known_is_not_guessed() -> None:
    attention = torch.nn.Module()
    assert value_norm_eps(attention) is None
    attention.v_norm = torch.nn.LayerNorm(4, elementwise_affine=False)
    with pytest.raises(ValueError, match=r"v_norm \(LayerNorm\) does something else than x / rms\(x\)"):
        value_norm_eps(attention)


def test_emu3_tokens_of_a_picture_depend_on_larger_neighbours(checkpoint: Callable[[str], Path]) -> None:
    """What its caveat says; alike neighbours leave them alone."""
    adapter = make_adapter(checkpoint("emu3"), processor={"min_pixels": 1600, "max_pixels": 1600})
    (caveat,) = adapter.caveats()
    assert "the tokens of an image depend on its neighbours in the batch" in caveat
    model = adapter.load(dtype=torch.float32, device="cpu")

    def tokens(*rows: Conversation) -> list[int]:
        inputs = adapter.batch(rows).inputs
        with torch.no_grad():
            ids: torch.Tensor = model.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
        return ids.tolist()

    square, other, wide = ask(noise(40, 40, 1)), ask(noise(40, 40, 2)), ask(noise(90, 10, 3))
    alone = tokens(square)
    assert tokens(square, other)[: len(alone)] == alone
    assert tokens(square, wide)[: len(alone)] != alone


def test_emu3_counts_the_first_token_that_its_processor_writes(checkpoint: Callable[[str], Path]) -> None:
    adapter = make_adapter(checkpoint("emu3"))
    for conversation in (ask(), ask(noise(20, 20, 1))):
        ids = adapter.batch([conversation]).inputs["input_ids"][0]
        assert adapter.num_tokens(conversation) == len(ids)
        assert ids[0] == adapter.processor().tokenizer.bos_token_id
