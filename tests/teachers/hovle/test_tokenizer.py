"""The tokenizer on a sentencepiece model that the test trains: byte fallback, newlines, Chinese text, saving."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path

import linearize_hovle.registration  # noqa: F401
import pytest
import sentencepiece
from linearize_hovle.tokenization import ADDED_TOKENS, HovleTokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

TEXTS = (
    "the red circle",
    "a\nb\n\n  c",
    " 图中有什么颜色？é🙂\t!",
    "line one\nline two\n",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_sentencepiece_s_own_and_decode_to_the_text(
    tokenizer: HovleTokenizer, sentencepiece_file: Path, text: str
) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == reference.encode(text)
    assert list(tokenizer.stretch(text)) == ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_stream_to_the_text(tokenizer: HovleTokenizer, text: str) -> None:
    """As `transformers serve` streams them."""
    ids = tokenizer.encode(f"{text}<|im_end|>", add_special_tokens=False)
    stream = DecodeStream([], skip_special_tokens=True)
    assert "".join(stream.step(tokenizer._tokenizer, token) or "" for token in ids) == text


@pytest.mark.parametrize("skips", [True, False])
def test_ids_that_text_would_not_give_stream_as_they_decode(tokenizer: HovleTokenizer, skips: bool) -> None:
    draw = random.Random(0)
    pieces = [token for token in range(len(tokenizer)) if not tokenizer.sp_model.is_byte(min(token, 359))]
    for _ in range(50):
        ids = [draw.choice(pieces) for _ in range(9)]
        decoded = pickle.loads(pickle.dumps(tokenizer))._tokenizer.decode(ids, skip_special_tokens=skips)
        assert decoded.replace(" ", "") == tokenizer.decode(ids, skip_special_tokens=skips).replace(" ", "")


def test_characters_that_the_model_never_saw_become_bytes(tokenizer: HovleTokenizer) -> None:
    tokens = tokenizer.tokenize("🙂")
    assert tokens[-4:] == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]


def test_text_between_added_tokens_is_encoded_on_its_own(tokenizer: HovleTokenizer, sentencepiece_file: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    text = "<|im_start|>user\nthe 图<|im_end|>"
    wanted = [tokenizer.bos_token_id, start, *reference.encode("user\nthe 图"), end]
    assert tokenizer(text)["input_ids"] == wanted
    assert tokenizer.decode(wanted[1:]) == text
    assert tokenizer.decode(wanted, skip_special_tokens=True) == "user\nthe 图"


def test_added_tokens_follow_the_sentencepiece_ids_in_the_published_order(
    tokenizer: HovleTokenizer, sentencepiece_file: Path
) -> None:
    size = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file)).get_piece_size()
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(size, size + len(ADDED_TOKENS)))
    assert len(tokenizer) == size + len(ADDED_TOKENS)


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_a_saved_tokenizer_loads_with_and_without_the_auto_class(
    sentencepiece_file: Path, tmp_path: Path, add_bos_token: bool
) -> None:
    tokenizer = HovleTokenizer(str(sentencepiece_file), add_bos_token=add_bos_token)
    tokenizer.save_pretrained(tmp_path)
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nthe 图<|im_end|>"
    for cls in (HovleTokenizer, AutoTokenizer):
        again = cls.from_pretrained(tmp_path)
        assert isinstance(again, HovleTokenizer)
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert (again.add_bos_token, len(again)) == (add_bos_token, len(tokenizer))


def test_published_options_load_without_remote_code(published_folder: Path, tokenizer: HovleTokenizer) -> None:
    again = HovleTokenizer.from_pretrained(published_folder)
    text = "<|im_start|>user\nthe red circle<|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_added_tokens_may_take_ids_that_sentencepiece_reserves(sentencepiece_file: Path, tmp_path: Path) -> None:
    size = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file)).get_piece_size()
    contents = ["<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    places = {str(size - 2 + i): {"content": c, "special": True, "normalized": False} for i, c in enumerate(contents)}
    options = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": places,
        "additional_special_tokens": contents,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 8192,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    tokenizer = HovleTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(contents) == list(range(size - 2, size + 3))
    assert len(tokenizer) == size + 3
    ids = tokenizer("<|im_start|>hi<|im_end|>", add_special_tokens=False)["input_ids"]
    assert (ids[0], ids[-1]) == (size - 1, size - 2)
    assert tokenizer.decode(ids) == "<|im_start|>hi<|im_end|>"


def test_copies_and_pickles_encode_alike(tokenizer: HovleTokenizer) -> None:
    text = "how many <img> triangles"
    for again in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.stretch("how many") == tokenizer.stretch("how many")
