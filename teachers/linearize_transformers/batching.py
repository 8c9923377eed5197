"""Conversations to batches with a checkpoint's own processor: inputs, loss mask, token kinds.

The processor expands each image's placeholder to as many tokens as the image takes. Answers are therefore found twice:
in the unexpanded text, by the tokenizer's character offsets, and from there in the processor's ids, by looking for the
same run of tokens.

Letters: B rows, T tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from linearize.data.images import to_rgb
from linearize.errors import CheckpointError, DataError
from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT, Batch
from linearize.protocols.conversation import Conversation
from linearize_transformers.processing import process
from linearize_transformers.prompt import Prompt, Template
from linearize_transformers.typed import TypedText


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt's tokens with its image placeholders unexpanded; ``is_answer`` says which ones the loss covers."""

    ids: list[int]
    is_answer: list[bool]


class Batcher:
    """Makes batches for one checkpoint.

    Args:
        processor: the checkpoint's processor, or the tokenizer of a text model.
        input_names: what the model's forward takes; other things that the processor returns are left out.
        image_token_id: the token that stands for a piece of an image in the model's input; None for a text model.

    Raises:
        CheckpointError: the tokenizer cannot tell where its tokens are in the text.
    """

    def __init__(
        self, processor: Any, template: Template, *, input_names: Collection[str], image_token_id: int | None
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        marks = [*map(tokenizer.convert_tokens_to_ids, template.end_marks), image_token_id]
        self.typed = TypedText(processor, [mark for mark in marks if mark is not None])
        self.template = template
        self.input_names = frozenset(input_names)
        self.image_token_id = image_token_id
        if not getattr(self.tokenizer, "is_fast", False):
            raise CheckpointError(
                f"the checkpoint's tokenizer is a {type(self.tokenizer).__name__}, which does not tell where its "
                "tokens are in the text; one of the tokenizers library (with a tokenizer.json) is needed"
            )
        self._added = functools.lru_cache(maxsize=65536)(self._count_added)

    @property
    def processor(self) -> Any:
        """The checkpoint's, which also knows the stand-ins for what people typed."""
        return self.typed.processor

    @property
    def tokenizer(self) -> Any:
        """The processor's, or itself."""
        return self.typed.tokenizer

    def batch(self, conversations: Sequence[Conversation], *, for_generation: bool) -> Batch:
        """Whole conversations right-padded, or for generation left-padded prompts up to the last question.

        Raises:
            DataError: no conversation, or one that the template or the processor cannot take; names it.
        """
        if not conversations:
            raise DataError("a batch of no conversations was asked for; expected at least one")
        prompts = [
            self.template.prompt(self.typed.hand_over(one), for_generation=for_generation) for one in conversations
        ]
        outputs = self._process(
            prompts, [list(one.images) for one in conversations], "left" if for_generation else "right"
        )
        ids_BT: Tensor = outputs["input_ids"]
        valid_BT = outputs["attention_mask"].bool()
        loss_BT = torch.zeros_like(valid_BT)
        for row, (prompt, conversation) in enumerate(zip(prompts, conversations, strict=True)):
            if prompt.answers:
                flags = self._answer_flags(prompt, ids_BT[row][valid_BT[row]].tolist(), conversation)
                loss_BT[row, valid_BT[row]] = torch.tensor(flags)
        kind_BT = torch.full_like(ids_BT, TOKEN_TEXT, dtype=torch.uint8)
        if self.image_token_id is not None:
            kind_BT[ids_BT == self.image_token_id] = TOKEN_IMAGE
        kind_BT[~valid_BT] = TOKEN_PAD
        outputs["input_ids"] = self.typed.restore(ids_BT)
        inputs = {name: value for name, value in outputs.items() if name in self.input_names}
        return Batch(inputs, loss_BT, kind_BT)

    def text_batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of tokens, right-padded; the loss covers all of them."""
        padded = [{"input_ids": list(ids)} for ids in rows]
        outputs = dict(self.tokenizer.pad(padded, padding=True, padding_side="right", return_tensors="pt"))
        outputs = self._text_inputs({name: outputs[name] for name in ("input_ids", "attention_mask")})
        valid_BT = outputs["attention_mask"].bool()
        kind_BT = torch.where(valid_BT, TOKEN_TEXT, TOKEN_PAD).to(torch.uint8)
        inputs = {name: value for name, value in outputs.items() if name in self.input_names}
        return Batch(inputs, valid_BT, kind_BT)

    def num_tokens(self, conversation: Conversation) -> int:
        """Tokens of a whole conversation; an image's are counted once for each size that is met."""
        prompt = self.template.prompt(self.typed.hand_over(conversation), for_generation=False)
        return len(self.encode(prompt).ids) + self._added(tuple(image.size for image in conversation.images))

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt's tokens, image placeholders unexpanded."""
        encoded = self.tokenizer(prompt.text, return_offsets_mapping=True, **self._special(prompt.text))
        offsets = encoded["offset_mapping"]
        flags = [
            any(begin < end and begin < last and end > first for first, last in prompt.answers)
            for begin, end in offsets
        ]
        return Encoded(list(encoded["input_ids"]), flags)

    def _process(self, prompts: Sequence[Prompt], images: list[list[Any]], padding_side: str) -> dict[str, Tensor]:
        try:
            return self._inputs(prompts, [[to_rgb(image) for image in row] for row in images], padding_side)
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"the checkpoint's {type(self.processor).__name__} cannot take a batch that begins with "
                f"{prompts[0].text[:80]!r}: {type(error).__name__}: {error}"
            ) from error

    def _inputs(self, prompts: Sequence[Prompt], images: list[list[Any]], padding_side: str) -> dict[str, Tensor]:
        """What the processor makes of them; may fail in any way."""
        texts = [prompt.text for prompt in prompts]
        return process(
            self.processor,
            texts,
            images,
            input_names=self.input_names,
            padding_side=padding_side,
            **self._special(texts[0]),
        )

    def _text_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that a model takes where no image is, from ids and mask."""
        return inputs

    def _special(self, text: str) -> dict[str, bool]:
        """A template that writes the first token itself must not get it a second time."""
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}

    def _answer_flags(self, prompt: Prompt, ids: list[int], conversation: Conversation) -> list[bool]:
        """For each of the processor's tokens, whether the loss covers it."""
        encoded = self.encode(prompt)
        if encoded.ids == ids:
            return encoded.is_answer
        flags = [False] * len(ids)
        cursor = 0
        for first, last in self._runs(encoded):
            run = encoded.ids[first:last]
            place = _find(run, ids, cursor)
            if place is None:
                raise DataError(
                    f"the answers of conversation '{conversation.id}' cannot be found among the tokens that "
                    f"{type(self.processor).__name__} makes of it: it writes the text around them otherwise when an "
                    "image is there"
                )
            flags[place : place + len(run)] = encoded.is_answer[first:last]
            cursor = place + len(run)
        return flags

    def _runs(self, encoded: Encoded) -> list[tuple[int, int]]:
        """Stretches of tokens between images that hold answers, from a token that nothing before can merge with."""
        places = [place for place, token in enumerate(encoded.ids) if token in self._placeholders]
        cuts = [-1, *places, len(encoded.ids)]
        runs = []
        for before, after in itertools.pairwise(cuts):
            answers = [place for place in range(before + 1, after) if encoded.is_answer[place]]
            if not answers:
                continue
            begin = next(
                (place for place in range(before + 1, answers[0]) if encoded.ids[place] in self._hard), before + 1
            )
            runs.append((begin, answers[-1] + 1))
        return runs

    @functools.cached_property
    def _placeholders(self) -> frozenset[int]:
        """Special tokens that the template writes for an image and nowhere else."""
        if self.image_token_id is None:
            return frozenset()
        words: list[dict[str, str]] = [{"type": "text", "text": "x"}]
        with_image, without = (set(self._encode_parts(parts)) for parts in ([{"type": "image"}, *words], words))
        return frozenset((with_image - without) & self._hard)

    @functools.cached_property
    def _hard(self) -> frozenset[int]:
        """Tokens that are cut out of the text before anything else, so that no neighbour merges with them."""
        return frozenset(self.tokenizer.all_special_ids) | frozenset(self.tokenizer.added_tokens_decoder)

    def _render(self, parts: list[dict[str, str]]) -> Prompt:
        text: str = self.processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        return Prompt(text, (), len(text))

    def _encode_parts(self, parts: list[dict[str, str]]) -> list[int]:
        return self.encode(self._render(parts)).ids

    def _count_added(self, sizes: tuple[tuple[int, int], ...]) -> int:
        """Tokens that the processor adds to its text: for images of these sizes, or a first token without any."""
        if self.processor is self.tokenizer:
            return 0
        blank = [Image.new("RGB", size) for size in sizes]
        parts = [*({"type": "image"} for _ in blank), {"type": "text", "text": "x"}]
        expanded = self._process([self._render(parts)], [blank], "right")["input_ids"].shape[1]
        return int(expanded) - len(self._encode_parts(parts))


def _find(run: list[int], ids: list[int], start: int) -> int | None:
    """Where ``run`` begins in ``ids``, at ``start`` or behind it."""
    for place in range(start, len(ids) - len(run) + 1):
        if ids[place] == run[0] and ids[place : place + len(run)] == run:
            return place
    return None
