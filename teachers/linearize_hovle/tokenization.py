"""The tokenizer of published HoVLE checkpoints: sentencepiece ``tokenizer.model`` plus added tokens, no remote code.

Text is cut at the added tokens, and each stretch between them is encoded by sentencepiece on its own, as the published
tokenizer does; the ids are sentencepiece's own. Added tokens may sit on ids that the sentencepiece model reserves
(``<|im_start|>`` does in the published model) or behind its last one.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from linearize_hovle.prompt import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TURN_END, TURN_START
from linearize_hovle.streaming import decoding_tokenizer

ADDED_TOKENS = (
    TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT,
    "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
)  # fmt: skip
"""What a tokenizer gets whose folder names no added tokens, in the order of the published ids."""


class HovleTokenizer(SentencePieceBackend):
    """sentencepiece ids with added tokens; a BOS in front when ``add_bos_token``.

    Args:
        vocab_file: the sentencepiece model.
        add_bos_token, add_eos_token: whether encoding with special tokens adds them.
        added_tokens_decoder: id -> added token, as saved files have it; without any, ``ADDED_TOKENS`` are added.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        unk_token: str = "<unk>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        if not kwargs.get("added_tokens_decoder") and not kwargs.get("extra_special_tokens"):
            kwargs["extra_special_tokens"] = list(ADDED_TOKENS)
        kwargs["clean_up_tokenization_spaces"] = False
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        super().__init__(
            vocab_file=vocab_file, unk_token=unk_token, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token,
            add_bos_token=add_bos_token, add_eos_token=add_eos_token, **kwargs,
        )  # fmt: skip
        self.stretch = functools.lru_cache(maxsize=65536)(self._encode_stretch)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids with BOS and EOS as configured; a second sequence follows the first directly."""
        front = [self.bos_token_id] if self.add_bos_token else []
        back = [self.eos_token_id] if self.add_eos_token else []
        return [*front, *token_ids_0, *(token_ids_1 or []), *back]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of pieces: sentencepiece decodes the stretches between added tokens, which stay as they are."""
        parts: list[str] = []
        run: list[str] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                parts.append(self.sp_model.decode_pieces(run))
                parts.append(token)
                run = []
            else:
                run.append(token)
        parts.append(self.sp_model.decode_pieces(run))
        return "".join(parts)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """What ``transformers serve`` streams with, by the name that it has in tokenizers of the tokenizers library."""
        return decoding_tokenizer(self)

    def mark(self, token: int) -> str:
        """The name of an added token; "" for one that text may give."""
        added = self._added_tokens_decoder.get(token)
        return "" if added is None or token == self.unk_token_id else str(added)

    def cut(self, text: str) -> Iterator[tuple[int, str]]:
        """(id, token) for each added token and (-1, text) for each stretch between, in order."""
        for part in self._added_pattern.split(text):
            if part:
                yield self._added_tokens_encoder.get(part, -1), part

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        super()._update_trie(unique_no_split_tokens)
        longest_first = sorted(self._added_tokens_encoder, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _encode_stretch(self, text: str) -> tuple[int, ...]:
        """sentencepiece's ids of text without added tokens; cached as ``stretch``, since prompts repeat themselves."""
        return tuple(self.sp_model.encode(text))

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Writes the tokenizer's files; transformers leaves the BOS and EOS options out of tokenizer_config.json."""
        files: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
        file = Path(save_directory) / "tokenizer_config.json"
        options = {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        content = json.loads(file.read_text(encoding="utf-8")) | options
        file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        return files

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("stretch", "_tokenizer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.stretch = functools.lru_cache(maxsize=65536)(self._encode_stretch)
