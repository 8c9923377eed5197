"""Prefix language models: they read what stands before the first answer in both directions, and the rest causally.

Their processors know one prefix and one suffix. Here a conversation of any number of turns is laid out as its text
says: the prefix reaches up to the first answer, and whatever follows, later questions too, is suffix.

Letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linearize_transformers.batching import Batcher
from linearize_transformers.prompt import Prompt

PREFIX_MODELS = frozenset({"paligemma"})
"""``config.model_type`` of models with a bidirectional prefix."""


class PrefixBatcher(Batcher):
    """Marks each token as prefix or suffix, and writes nothing into the text but the tokens of its images.

    The processor's own call would put a first token and a line break where only a single question is.
    """

    def _inputs(self, prompts: Sequence[Prompt], images: list[list[Any]], padding_side: str) -> dict[str, Tensor]:
        rows: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        for prompt in prompts:
            encoded = self.tokenizer(prompt.text, return_offsets_mapping=True, **self._special(prompt.text))
            ids, types = [], []
            for token, (begin, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                times = self.processor.image_seq_length if token == self.image_token_id else 1
                ids += [token] * times
                types += [int(begin >= prompt.prefix)] * times
            rows["input_ids"].append(ids)
            rows["token_type_ids"].append(types)
        outputs = dict(self.tokenizer.pad(rows, padding=True, padding_side=padding_side, return_tensors="pt"))
        pictures = [image for row in images for image in row]
        if pictures:
            outputs |= self.processor.image_processor(pictures, return_tensors="pt")
        return outputs

    def _text_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Running text is all suffix: each token sees those before it."""
        return {**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])}

    def _special(self, text: str) -> dict[str, bool]:
        """Its text is whole, first token included, wherever that stands."""
        del text
        return {"add_special_tokens": False}
