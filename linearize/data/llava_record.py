"""One LLaVA-style record: from JSON to turns and image names, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from linearize.data.bad_records import BadRecordError
from linearize.protocols.conversation import IMAGE_MARK, Turn

SystemHandling = Literal["refuse", "prepend", "drop"]

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True, slots=True)
class LlavaRecord:
    """What a record says.

    Attributes:
        images: file names as the record has them, in the order of the ``<image>`` marks.
        mark_added: whether the record had one image and no mark, so that one was put in front of the first question.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    id: str = ""
    task: str = ""
    mark_added: bool = False


def parse_record(value: object, *, system: SystemHandling = "refuse") -> LlavaRecord:
    """The record that a JSON value holds; keys that are not named here are ignored.

    Args:
        value: an object with ``conversations``, and where there are any ``image``, ``system``, ``id`` and ``task``.
        system: what becomes of a system message, for which a Conversation has no place.

    Raises:
        BadRecordError: the value is no usable record; says why.
    """
    if not isinstance(value, Mapping):
        raise BadRecordError("not a record", f"a JSON object was due, found {type(value).__name__}")
    if "video" in value:
        raise BadRecordError("not a record", "it holds a video; only images and text are read")
    images = _image_names(value)
    prologue, turns = _turns(value)
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
            f"wrong number of {IMAGE_MARK} marks", f"{num_marks} in the questions for {len(images)} images"
        )
    return LlavaRecord(tuple(turns), images, _text(value, "id"), _text(value, "task"), mark_added)


def record_to_json(record: LlavaRecord) -> dict[str, Any]:
    """The JSON value of a record; ``parse_record`` gives the record back."""
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


def _text(value: Mapping[str, object], key: str) -> str:
    found = value.get(key, "")
    return str(found) if isinstance(found, str | int) else ""


def _image_names(value: Mapping[str, object]) -> tuple[str, ...]:
    if "image" in value and "images" in value:
        raise BadRecordError("not a record", "it has both 'image' and 'images'")
    found = value.get("image", value.get("images"))
    names = [found] if isinstance(found, str) else found
    if names is None or names == [""]:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadRecordError("not a record", "'image' is neither a file name nor a list of file names")
    return tuple(names)


def _turns(value: Mapping[str, object]) -> tuple[str, list[Turn]]:
    """The system message ("" without one) and the turns, at least one."""
    entries = value.get("conversations")
    if not isinstance(entries, list):
        raise BadRecordError("not a record", "it has no list 'conversations'")
    messages = [_message(number, entry) for number, entry in enumerate(entries, start=1)]
    prologue = value.get("system") or ""
    if not isinstance(prologue, str):
        raise BadRecordError("not a record", "'system' is not a text")
    if messages and messages[0][0] == "system":
        if prologue:
            raise BadRecordError("not a record", "it has a system message in two places")
        prologue, messages = messages[0][1], messages[1:]
    if IMAGE_MARK in prologue:
        raise BadRecordError(f"wrong number of {IMAGE_MARK} marks", "the system message holds one")
    _check_order([speaker for speaker, _ in messages])
    pairs = zip(messages[0::2], messages[1::2], strict=True)
    return prologue, [_turn(number, question, answer) for number, ((_, question), (_, answer)) in enumerate(pairs, 1)]


def _message(number: int, entry: object) -> tuple[str, str]:
    """Speaker and text of one entry of ``conversations``."""
    if not isinstance(entry, Mapping):
        raise BadRecordError("not a record", f"message {number} is not an object")
    speaker, text = entry.get("from", entry.get("role")), entry.get("value", entry.get("content"))
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise BadRecordError("not a record", f"message {number} is from {speaker!r}; 'human' or 'gpt' was due")
    if not isinstance(text, str):
        raise BadRecordError("not a record", f"message {number} has no text in 'value'")
    return _SPEAKERS[speaker], text


def _check_order(speakers: Sequence[str]) -> None:
    if not speakers:
        raise BadRecordError("no turns", "'conversations' holds no question")
    for number, speaker in enumerate(speakers, start=1):
        due = "human" if number % 2 else "gpt"
        if speaker != due:
            raise BadRecordError("turns out of order", f"message {number} is from {speaker}, {due} was due")
    if len(speakers) % 2:
        raise BadRecordError("turns out of order", "the last question has no answer")


def _turn(number: int, question: str, answer: str) -> Turn:
    if not question:
        raise BadRecordError("empty text", f"question {number} is empty")
    if not answer:
        raise BadRecordError("empty text", f"answer {number} is empty")
    if IMAGE_MARK in answer:
        raise BadRecordError(f"wrong number of {IMAGE_MARK} marks", f"answer {number} holds one; only questions may")
    return Turn(question, answer)
