"""Conversations through a checkpoint's own chat template: the text, and where in it the answers are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from linearize.errors import DataError
from linearize.protocols.conversation import IMAGE_MARK, Conversation


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as text.

    Attributes:
        text: image placeholders are not expanded yet.
        answers: (begin, end) of each answer in characters, its end mark included; none in a prompt for generation.
        prefix: where the first answer begins, or would begin, in characters.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    prefix: int


class Template:
    """A chat template and the marks that end an answer.

    Args:
        renderer: the processor, or a text model's tokenizer: whatever has ``apply_chat_template``.
        takes_images: whether a message's content is a list of parts or plain text.
        end_marks: texts of the tokens that end generation.
    """

    def __init__(self, renderer: Any, *, takes_images: bool, end_marks: Collection[str]) -> None:
        self.renderer = renderer
        self.takes_images = takes_images
        self.end_marks = tuple(sorted(end_marks, key=len, reverse=True))

    def prompt(self, conversation: Conversation, *, for_generation: bool) -> Prompt:
        """The whole conversation, or for generation all up to the point where the last answer begins.

        Where the answers are is found by rendering the conversation a second time with a placeholder for each, so no
        template has to mark them.

        Raises:
            DataError: images without a mark or the other way round, images for a text model, or a template that
                changes what it is given.
        """
        turns = self._turns(conversation)
        if for_generation:
            open_turn = [*turns[:-1], (turns[-1][0], None)]
            text = self._render(open_turn, conversation)
            first = self._render([(turns[0][0], None)], conversation) if len(turns) > 1 else text
            return Prompt(text, (), len(first))
        words = [f"linearizeanswer{number}placeholder" for number in range(len(turns))]
        marked = self._render(
            [(question, word) for (question, _), word in zip(turns, words, strict=True)], conversation
        )
        rest, text, answers = marked, "", []
        for word, (_, answer) in zip(words, turns, strict=True):
            before, found, rest = rest.partition(word)
            if not found or word in rest:
                raise self._changed(conversation, "leaves an answer out or repeats it")
            text += before
            end = self._end_mark(rest)
            answers.append((len(text), len(text) + len(answer or "") + len(end)))
            text += answer or ""
        text += rest
        if text != self._render(turns, conversation):
            raise self._changed(conversation, "writes an answer otherwise than it is")
        return Prompt(text, tuple(answers), answers[0][0])

    def _turns(self, conversation: Conversation) -> list[tuple[str, str | None]]:
        marks, images = conversation.num_image_marks(), len(conversation.images)
        if images and not self.takes_images:
            raise DataError(
                f"conversation '{conversation.id}' has {images} images, but the teacher is a text model; give it "
                "conversations without images, or take a vision-language model"
            )
        # Templates strip what surrounds an answer; an answer that is stripped already comes out as it went in.
        turns: list[tuple[str, str | None]] = [(turn.question, turn.answer.strip()) for turn in conversation.turns]
        if images and not marks:
            turns[0] = (f"{IMAGE_MARK}\n" * images + turns[0][0], turns[0][1])
        elif marks != images:
            raise DataError(
                f"conversation '{conversation.id}' holds {marks} {IMAGE_MARK} marks for {images} images; each image "
                "needs its own mark"
            )
        return turns

    def _render(self, turns: Sequence[tuple[str, str | None]], conversation: Conversation) -> str:
        messages: list[dict[str, Any]] = []
        for question, answer in turns:
            messages.append({"role": "user", "content": self._parts(question)})
            if answer is not None:
                spoken: Any = [{"type": "text", "text": answer}] if self.takes_images else answer
                messages.append({"role": "assistant", "content": spoken})
        is_open = turns[-1][1] is None
        try:
            text: str = self.renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open)
        except Exception as error:
            raise DataError(
                f"the checkpoint's chat template cannot render conversation '{conversation.id}': "
                f"{type(error).__name__}: {error}. teacher.chat_template sets another one."
            ) from error
        return text

    def _parts(self, text: str) -> Any:
        """A message's content; the line break that records put behind an image mark is not part of the text."""
        if not self.takes_images:
            return text
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(text.split(IMAGE_MARK)):
            if number:
                parts.append({"type": "image"})
                piece = piece.removeprefix("\n")
            if piece:
                parts.append({"type": "text", "text": piece})
        return parts or [{"type": "text", "text": ""}]

    def _end_mark(self, behind: str) -> str:
        """What ends an answer, with the white space before it; empty where the template does not end it."""
        stripped = behind.lstrip()
        space = behind[: len(behind) - len(stripped)]
        return next((space + mark for mark in self.end_marks if stripped.startswith(mark)), "")

    @staticmethod
    def _changed(conversation: Conversation, how: str) -> DataError:
        return DataError(
            f"the checkpoint's chat template {how} (conversation '{conversation.id}'), so the answer's tokens cannot "
            "be told from the others; set teacher.chat_template to one that keeps answers as they are"
        )
