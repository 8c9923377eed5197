"""What people typed, kept apart from what the template writes: a special token in a question or an answer is text.

Processors know one way in: a whole prompt, in which they look for special tokens. So a text that spells one is handed
over as stand-ins, tokens of our own, one for each token that the text has when it is read as text alone; and in the ids
that come back each stand-in becomes the token that it stands for. Lengths, masks and positions are then right as they
are, whatever else the processor makes of the prompt. A text that spells none, nearly every one, is left as it is.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from linearize.errors import DataError
from linearize.protocols import IMAGE_MARK, Conversation, Turn

STAND_IN = "<|linearize-typed-{}|>"
ANCHORS = ("\n", "x ", ".")
"""What a text is encoded behind, since tokenizers treat the beginning of their input in ways of their own."""


class TypedText:
    """Stand-ins for one checkpoint's special tokens.

    Args:
        processor: the checkpoint's processor, or the tokenizer of a text model; it is never changed.
        marks: tokens that must come from the template alone, beside those that the tokenizer calls special.

    Attributes:
        processor: knows the stand-ins; a copy from the first one on.
    """

    def __init__(self, processor: Any, marks: Iterable[int] = ()) -> None:
        self.processor = self._original = processor
        self._more_marks = frozenset(marks)
        self._ordinary: dict[int, int] = {}  # stand-in -> the token that it stands for

    @property
    def tokenizer(self) -> Any:
        """The processor's, or itself."""
        return getattr(self.processor, "tokenizer", self.processor)

    def hand_over(self, conversation: Conversation) -> Conversation:
        """The conversation with stand-ins for what spells special tokens.

        Raises:
            DataError: a text spells a token that the tokenizer reads wherever it stands.
        """
        turns = tuple(
            Turn(
                IMAGE_MARK.join(self._safe(piece, conversation.id) for piece in turn.question.split(IMAGE_MARK)),
                self._safe(turn.answer, conversation.id),
            )
            for turn in conversation.turns
        )
        return conversation if turns == conversation.turns else replace(conversation, turns=turns)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of running text: what the tokenizer puts in front of a text, the text, and what ends one.

        Raises:
            DataError: a text spells a token that the tokenizer reads wherever it stands.
        """
        tokenizer = getattr(self._original, "tokenizer", self._original)
        read = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for ids in read:
            self._refuse_marks(ids, "a document")
        ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [[*self._front, *ids, *ends] for ids in read]

    @functools.cached_property
    def _front(self) -> list[int]:
        """What the tokenizer puts in front of every text."""
        tokenizer = getattr(self._original, "tokenizer", self._original)
        whole, text = (tokenizer("x", add_special_tokens=special)["input_ids"] for special in (True, False))
        return list(whole[: next(place for place, token in enumerate(whole) if token == text[0])])

    def restore(self, ids: Tensor) -> Tensor:
        """Ids of any shape with the tokens that stand-ins stand for."""
        if not self._ordinary:
            return ids
        restored = ids.clone()
        for stand_in in torch.unique(ids).tolist():
            if stand_in in self._ordinary:
                restored[ids == stand_in] = self._ordinary[stand_in]
        return restored

    def _safe(self, text: str, name: str) -> str:
        if not self._spelling.search(text):
            return text
        core = text.strip()  # templates may strip the white space around a text
        begin = text.index(core)
        ids = self._ids_as_text(core)
        self._refuse_marks(ids, f"conversation '{name}'")
        return text[:begin] + "".join(map(self._stand_in, ids)) + text[begin + len(core) :]

    def _refuse_marks(self, ids: Iterable[int], what: str) -> None:
        for token in self._marks.keys() & set(ids):
            raise DataError(
                f"{what} holds the text {self._marks[token]!r}, which the checkpoint's tokenizer reads as a mark of "
                "the prompt wherever it stands; leave it out"
            )

    def _ids_as_text(self, text: str) -> list[int]:
        tokenizer = getattr(self._original, "tokenizer", self._original)
        for anchor in (*ANCHORS, ""):
            encoded = tokenizer(
                anchor + text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
            pairs = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
            if not any(first < len(anchor) < last for _, (first, last) in pairs):
                break
        return [token for token, (first, _) in pairs if first >= len(anchor)]

    def _stand_in(self, token: int) -> str:
        text = STAND_IN.format(token)
        if self.processor is self._original:
            self.processor = copy.deepcopy(self._original)
        if token not in self._ordinary.values():
            self.tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)], special_tokens=True)
            self._ordinary[self.tokenizer.convert_tokens_to_ids(text)] = token
        return text

    @functools.cached_property
    def _marks(self) -> dict[int, str]:
        """Tokens that no text may bring, and how they are spelt."""
        tokenizer = getattr(self._original, "tokenizer", self._original)
        wanted = {tokenizer.convert_tokens_to_ids(text) for text in self._own_marks} | self._more_marks
        return {
            token: added.content
            for token, added in tokenizer.added_tokens_decoder.items()
            # What is unknown is a text's own.
            if (added.special or token in wanted) and token != tokenizer.unk_token_id
        }

    @functools.cached_property
    def _own_marks(self) -> frozenset[str]:
        """What the processor looks for in a prompt: its ``image_token`` and the like."""
        names = (name for name in dir(self._original) if name.endswith("_token"))
        found = (getattr(self._original, name, None) for name in names)
        return frozenset(str(one) for one in found if isinstance(one, str | AddedToken) and str(one).strip())

    @functools.cached_property
    def _spelling(self) -> re.Pattern[str]:
        """Finds what the tokenizer, or the processor before it, would read as a mark."""
        longest_first = sorted({*self._marks.values(), *self._own_marks}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.IGNORECASE)
