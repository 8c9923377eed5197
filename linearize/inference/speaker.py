"""A model in a conversation. What was said lives in its cache, so a turn reads the new tokens and none before them.

The adapter writes the prompt of the whole conversation, as it would for a reader of all of it. Where that prompt goes
on from what the cache has read, token by token, the cache goes on; where it does not, the whole is read again.

Letters: T tokens of the prompt, N new tokens, S tokens that the cache has read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from linearize.evaluate.answers import pad_id
from linearize.evaluate.modes import inference
from linearize.inference.continuation import ReadAgainError, new_inputs
from linearize.protocols.conversation import IMAGE_MARK, Conversation, Turn
from linearize.student.state import CACHE_NAME

if TYPE_CHECKING:
    from PIL.Image import Image

    from linearize.protocols import TeacherAdapter

TOKENS = ("input_ids", "attention_mask")
SECONDS_BETWEEN_PIECES = 0.03
"""Least time between two pieces of an answer: each takes decoding the answer from its beginning."""
UNFINISHED = "\ufffd"
"""What tokenizers put for a character of which some tokens are still to come."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: an answer that has not ended by then is cut there.
        temperature: 0: the likeliest token each time.
        seed: of the draws; each turn has numbers of its own.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and what it cost.

    Attributes:
        text: special tokens and the white space around it stripped.
        num_tokens: generated, the one that ends the answer included.
        num_read: tokens of the prompt that were read for it, and num_kept: those that the cache had read before.
        read_seconds: until the first token; write_seconds: from there to the last one.
        read_again: why the cache did not serve, in a clause; "" where it did, or there was none.
    """

    text: str
    num_tokens: int
    num_read: int
    num_kept: int
    read_seconds: float
    write_seconds: float
    read_again: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first one; None where there is none."""
        return (self.num_tokens - 1) / self.write_seconds if self.num_tokens > 1 and self.write_seconds else None


@dataclass(slots=True)
class History:
    """A conversation so far, as words and as what the model has read of it.

    Attributes:
        read_S: the tokens that the cache has read.
        extras: what the last prompt had beside its tokens, such as pixels.
    """

    turns: tuple[Turn, ...] = ()
    images: tuple[Image, ...] = ()
    cache: Any = None
    read_S: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Speaker:
    """One model and its side of a conversation.

    Args:
        model: a transformers model in eval mode.
        adapter: of its teacher, or of itself where it is one: it writes prompts and reads answers.
    """

    def __init__(self, model: Any, adapter: TeacherAdapter, sampling: Sampling) -> None:
        self.model, self.adapter, self.sampling = model, adapter, sampling
        self.history = History()

    def reset(self) -> None:
        """Forgets the conversation."""
        self.history = History()

    def answer(
        self,
        question: str,
        images: Sequence[Image] = (),
        *,
        tell: Callable[[str], None] = lambda piece: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """The answer to the next question of the conversation, which becomes part of it.

        Args:
            images: that the question introduces; without marks in it they stand before it.
            tell: called with each piece of the answer as soon as it is there.
            stopped: asked after each token; the answer ends where it says True, and stays part of the conversation.

        Raises:
            DataError: the adapter cannot write the prompt; the conversation is as it was.
        """
        marks = "" if IMAGE_MARK in question else f"{IMAGE_MARK}\n" * len(images)
        before, turn = self.history, Turn(marks + question, "")
        pictures = (*before.images, *images)
        conversation = Conversation((*before.turns, turn), pictures, id=f"question {len(before.turns) + 1}")
        inputs = self.adapter.batch([conversation], for_generation=True).to(self.model.device).inputs
        extras = {name: value for name, value in inputs.items() if name not in TOKENS}
        new, kept, why = extras, 0, ""
        if before.read_S is not None:
            try:
                new = new_inputs(inputs["input_ids"], extras, before.read_S, before.extras)
                kept = len(before.read_S)
            except ReadAgainError as reason:
                why = str(reason)
        passed = {**{name: inputs[name] for name in TOKENS}, **new}
        if kept:
            passed[CACHE_NAME] = before.cache
        streamer = _Streamer(self.adapter, tell)
        # The cache is written in place: should the answer fail, it is somewhere in the middle of it.
        self.history = History(before.turns, before.images)
        output = self._generate(passed, streamer, stopped, number=len(before.turns))
        ids_S = output.sequences[0]
        num_prompt = inputs["input_ids"].shape[1]
        [text] = self.adapter.decode(ids_S[None, num_prompt:])
        streamer.finish(text)
        # The last token was drawn and not read.
        turns = (*before.turns, Turn(turn.question, text))
        self.history = History(turns, pictures, output[CACHE_NAME], ids_S[:-1], extras)
        return Answer(
            text,
            num_tokens=len(ids_S) - num_prompt,
            num_read=num_prompt - kept,
            num_kept=kept,
            read_seconds=streamer.first - streamer.start,
            write_seconds=streamer.last - streamer.first,
            read_again=why,
        )

    def _generate(
        self, inputs: Mapping[str, Any], streamer: _Streamer, stopped: Callable[[], bool], number: int
    ) -> Any:
        sampling = self.sampling
        drawing: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawing = {"do_sample": True, "temperature": sampling.temperature}
            torch.manual_seed(sampling.seed + number)
        with inference(self.model):
            return self.model.generate(
                **inputs,
                **drawing,
                num_beams=1,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=pad_id(self.model),
                return_dict_in_generate=True,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Stop(stopped)]),
            )


class _Stop(StoppingCriteria):
    """Ends an answer when someone says so."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return input_ids.new_full((len(input_ids),), self.stopped(), dtype=torch.bool)


class _Streamer(BaseStreamer):
    """Tells an answer as it grows, and notes when its tokens came.

    Attributes:
        start, first, last: seconds of a clock, at the beginning and at the first and the last token.
    """

    def __init__(self, adapter: TeacherAdapter, tell: Callable[[str], None]) -> None:
        self.adapter, self.tell = adapter, tell
        self.ids: list[int] = []
        self.told = ""
        self.has_prompt = False
        self.start = self.first = self.last = self.told_at = time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Takes the prompt, which comes first, and then each new token."""
        if not self.has_prompt:
            self.has_prompt = True
            return
        self.last = time.perf_counter()
        if not self.ids:
            self.first = self.last
        self.ids += value.flatten().tolist()
        if self.last - self.told_at >= SECONDS_BETWEEN_PIECES:
            self.told_at = self.last
            [text] = self.adapter.decode(torch.tensor([self.ids]))
            if text.startswith(self.told) and not text.endswith(UNFINISHED):
                self._tell(text)

    def end(self) -> None:
        """Nothing: ``finish`` is told the text."""

    def finish(self, text: str) -> None:
        """Tells what is left of the answer."""
        if not text.startswith(self.told):  # a tokenizer that changed what it had decoded: once more, as it is
            self.tell("\n")
            self.told = ""
        self._tell(text)

    def _tell(self, text: str) -> None:
        if len(text) > len(self.told):
            self.tell(text[len(self.told) :])
            self.told = text
