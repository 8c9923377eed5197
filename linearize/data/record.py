"""One record of somebody else's: from a JSON object or a row of a table to turns and images, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from linearize.data.bad_records import BadRecordError
from linearize.data.messages import NOT_A_RECORD, ImageReference, Message, check_text, image_reference, read_messages
from linearize.protocols.conversation import IMAGE_MARK, Turn
from linearize.wording import counted

SystemHandling = Literal["refuse", "prepend", "drop"]

IMAGE_KEYS = ("image", "images")
MESSAGE_KEYS = ("conversations", "messages", "texts")
UNREAD_KEYS = ("video", "videos", "audio", "audios")
"""What a conversation may be about that no teacher is shown; a record that has any of it is bad."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a record says.

    Attributes:
        images: in the order of the ``<image>`` marks: a file's name or a data URI, or the file's content.
        mark_added: whether the record had one image and no mark, so that one was put in front of the first question.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageReference, ...]
    id: str = ""
    task: str = ""
    mark_added: bool = False


def parse_record(value: object, *, system: SystemHandling = "refuse") -> Record:
    """The record that a value holds; keys that are not named here are ignored, and so is every key that is None.

    Args:
        value: a mapping with messages under one of ``MESSAGE_KEYS``, and where there are any images under one of
            ``IMAGE_KEYS``, ``system``, ``id`` and ``task``.
        system: what becomes of a system message, for which a Conversation has no place.

    Raises:
        BadRecordError: the value is no usable record; says why.
    """
    if not isinstance(value, Mapping):
        raise BadRecordError(NOT_A_RECORD, f"expected a JSON object, got {type(value).__name__}")
    for key in UNREAD_KEYS:
        if value.get(key) not in (None, "", [], {}):
            raise BadRecordError(NOT_A_RECORD, f"'{key}' is not empty; only images and text are read")
    prologue, turns, images = _turns_and_images(value)
    if prologue:
        if system == "refuse":
            raise BadRecordError(
                "system message",
                "the teacher's prompt has its own; set data.system to 'prepend' (to the first question) or 'drop'",
            )
        if system == "prepend":
            turns[0] = Turn(f"{prologue}\n\n{turns[0].question}", turns[0].answer)
    num_marks = sum(turn.question.count(IMAGE_MARK) for turn in turns)
    mark_added = len(images) == 1 and num_marks == 0
    if mark_added:
        # LLaVA's own data leave the mark out of some records with one image and mean it in front.
        turns[0] = Turn(f"{IMAGE_MARK}\n{turns[0].question}", turns[0].answer)
    elif num_marks != len(images):
        raise BadRecordError(
            f"wrong number of {IMAGE_MARK} marks",
            f"{num_marks} in the questions for {counted(len(images), 'image')}"
            + ("; each one in a question stands for an image" if num_marks > len(images) else ""),
        )
    return Record(tuple(turns), images, _name(value, "id"), _name(value, "task"), mark_added)


def record_to_json(record: Record) -> dict[str, Any]:
    """The JSON value of a record whose images are names; ``parse_record`` gives the record back."""
    value: dict[str, Any] = {}
    if record.id:
        value["id"] = record.id
    if record.task:
        value["task"] = record.task
    if record.images:
        value["image"] = record.images[0] if len(record.images) == 1 else list(record.images)
    value["conversations"] = [
        {"from": speaker, "value": text}
        for turn in record.turns
        for speaker, text in (("human", turn.question), ("gpt", turn.answer))
    ]
    return value


def _name(value: Mapping[str, object], key: str) -> str:
    found = value.get(key)
    return check_text(str(found), f"'{key}'") if isinstance(found, str | int) else ""


def _turns_and_images(value: Mapping[str, object]) -> tuple[str, list[Turn], tuple[ImageReference, ...]]:
    """The system message ("" without one), at least one turn, and the images."""
    key = _only_key(value, MESSAGE_KEYS)
    if key is None:
        raise BadRecordError(NOT_A_RECORD, f"it has no list '{MESSAGE_KEYS[0]}' or '{MESSAGE_KEYS[1]}'")
    messages = read_messages(value[key], key)
    prologue = value.get("system") or ""
    if not isinstance(prologue, str):
        raise BadRecordError(NOT_A_RECORD, "'system' is not a text")
    check_text(prologue, "'system'")
    if messages and messages[0].speaker == "system":
        if prologue:
            raise BadRecordError(NOT_A_RECORD, "it has a system message in two places")
        prologue, messages = messages[0].text, messages[1:]
    if IMAGE_MARK in prologue:
        raise BadRecordError(f"wrong number of {IMAGE_MARK} marks", "the system message holds one")
    images = _images(value)
    inside = tuple(image for message in messages for image in message.images)
    if images and inside:
        raise BadRecordError(NOT_A_RECORD, "it names images both by a key and in its messages")
    return prologue, _turns(messages), images or inside


def _only_key(value: Mapping[str, object], keys: tuple[str, ...]) -> str | None:
    """Which of the keys the record uses."""
    used = [key for key in keys if value.get(key) is not None]
    if len(used) > 1:
        raise BadRecordError(NOT_A_RECORD, f"it has both '{used[0]}' and '{used[1]}'")
    return used[0] if used else None


def _images(value: Mapping[str, object]) -> tuple[ImageReference, ...]:
    key = _only_key(value, IMAGE_KEYS)
    found = value[key] if key is not None else None
    if found in (None, "", [], [""]):
        return ()
    return tuple(image_reference(one, f"'{key}'") for one in (found if isinstance(found, list) else [found]))


def _turns(messages: list[Message]) -> list[Turn]:
    if not messages:
        raise BadRecordError("no turns", "there is no question")
    for number, message in enumerate(messages, start=1):
        expected = "human" if number % 2 else "gpt"
        if message.speaker != expected:
            raise BadRecordError(
                "turns out of order", f"message {number} is from {message.speaker}; expected {expected}"
            )
    if len(messages) % 2:
        raise BadRecordError("turns out of order", "the last question has no answer")
    pairs = zip(messages[0::2], messages[1::2], strict=True)
    return [_turn(number, question.text, answer.text) for number, (question, answer) in enumerate(pairs, start=1)]


def _turn(number: int, question: str, answer: str) -> Turn:
    if not question:
        raise BadRecordError("empty text", f"question {number} is empty")
    if not answer:
        raise BadRecordError("empty text", f"answer {number} is empty")
    if IMAGE_MARK in answer:
        raise BadRecordError(f"wrong number of {IMAGE_MARK} marks", f"answer {number} holds one; only questions may")
    return Turn(question, answer)
