"""A tiny HoVLE of any shape, its tokenizer, and its folder in the published layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from linearize_hovle.checkpoint import save_model
from linearize_hovle.configuration import HovleConfig, HovleEmbeddingConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from linearize_hovle.tokenization import HovleTokenizer
from transformers import LlamaConfig

SENTENCES = (
    "the red circle is left of the blue square",
    "how many green triangles are there",
    "answer the question using a single word or phrase",
    "user assistant system",
    "图中有什么颜色的圆形",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-fallback sentencepiece model that keeps every character, newlines and runs of spaces included."""
    prefix = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(prefix),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="session")
def tokenizer(sentencepiece_file: Path) -> HovleTokenizer:
    return HovleTokenizer(str(sentencepiece_file))


def tiny_config(**changes: Any) -> HovleConfig:
    """2 + 2 layers of width 32; ``rope`` and ``window`` apply to both towers, the rest to the embedding module."""
    rope = changes.pop("rope", {"rope_type": "default"})
    window = changes.pop("window", 512)
    bias = changes.pop("attention_bias", False)
    vocabulary, image_token = changes.pop("vocab_size", 96), changes.pop("image_token_id", 90)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": window,
        "attention_bias": bias,
        "rms_norm_eps": 1e-5,
    }
    embedding = {"image_size": 28, "patch_size": 7, "image_token_id": image_token} | changes
    return HovleConfig(
        embedding_config=HovleEmbeddingConfig(**tower, **embedding, rope_parameters={"rope_theta": 100.0, **rope}),
        text_config=LlamaConfig(**tower, rope_parameters={"rope_theta": 300.0, **rope}, pad_token_id=2),
        image_size=28,
        template="internlm2-chat-bare",
        max_dynamic_patch=4,
    )


@pytest.fixture(scope="session")
def make_model() -> Callable[..., HovleForConditionalGeneration]:
    """Models whose every tensor matters: random norms and biases, weights large enough for sharp attention."""

    def make(**changes: Any) -> HovleForConditionalGeneration:
        torch.manual_seed(3)
        model = HovleForConditionalGeneration(tiny_config(**changes)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.4, 1.6)
                else:
                    parameter.normal_(
                        std=1.0 if parameter.dim() == 1 or "embed" in name else parameter.shape[-1] ** -0.5
                    )
        return model

    return make


def image_rows(model: HovleForConditionalGeneration, tiles: list[int], *, text: int = 6) -> list[torch.Tensor]:
    """One row of ids per entry: some text, that many tiles' image tokens, more text."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for count in tiles:
        image = torch.full((count * model.config.num_image_tokens,), model.config.image_token_id)
        words = torch.randint(3, 88, (text + count,), generator=generator)
        rows.append(torch.cat((words[:2], image, words[2:])))
    return rows


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, torch.Tensor]]:
    """Inputs of several rows with as many tiles as told, padded on either side."""

    def make(
        model: HovleForConditionalGeneration, tiles: list[int], *, left: bool = True, text: int = 6
    ) -> dict[str, torch.Tensor]:
        rows = image_rows(model, tiles, text=text)
        length = max(map(len, rows))
        ids_BT = torch.full((len(rows), length), 2)
        mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
        for number, row in enumerate(rows):
            place = slice(length - len(row), None) if left else slice(len(row))
            ids_BT[number, place], mask_BT[number, place] = row, 1
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if sum(tiles):
            generator = torch.Generator().manual_seed(7)
            inputs["pixel_values"] = torch.randn((sum(tiles), 3, 28, 28), generator=generator)
        return inputs

    return make


@pytest.fixture(scope="session")
def published_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: HovleTokenizer, make_model: Callable[..., Any]
) -> Path:
    """A complete checkpoint as it would be published: weights, config.json, sentencepiece model, tokenizer options."""
    folder = tmp_path_factory.mktemp("published")
    model = make_model(vocab_size=len(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    options = json.loads((folder / "tokenizer_config.json").read_text())
    options |= {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder
