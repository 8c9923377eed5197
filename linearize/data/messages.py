"""The messages of a record, in the ways that people write them: who speaks, what is said, which images stand in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linearize.data.bad_records import BadRecordError
from linearize.protocols.conversation import IMAGE_MARK

ImageReference = str | bytes
"""A file's name or a data URI, or the content of a file."""

NOT_A_RECORD = "not a record"

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        speaker: "human", "gpt" or "system".
        text: an image among its parts stands in it as ``<image>`` and a line break.
        images: those that its parts name.
    """

    speaker: str
    text: str
    images: tuple[ImageReference, ...] = ()


def read_messages(found: object, key: str) -> list[Message]:
    """The messages under a record's key: a list of them, of pairs of "user" and "assistant", or lists by their keys.

    Raises:
        BadRecordError: they are no messages; says which and why.
    """
    if isinstance(found, Mapping):
        found = _rows(found)  # as tables store lists of objects
    if not isinstance(found, list):
        raise BadRecordError(NOT_A_RECORD, f"'{key}' is {type(found).__name__}; expected a list of messages")
    entries: list[object] = []
    for entry in found:
        if isinstance(entry, Mapping) and entry.get("user") is not None and entry.get("assistant") is not None:
            entries += [{"role": role, "content": entry[role]} for role in ("user", "assistant")]
        else:
            entries.append(entry)
    return [_message(number, entry) for number, entry in enumerate(entries, start=1)]


def image_reference(found: object, where: str) -> ImageReference:
    """An image as a record names it: a text, bytes, or an object with either.

    Raises:
        BadRecordError: it is none of these.
    """
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("bytes", "path", "url") if found.get(key) is not None), None)
    if isinstance(found, bytes) and found:
        return found
    if isinstance(found, str) and found:
        return check_text(found, where)
    raise BadRecordError(NOT_A_RECORD, f"{where} is neither a file name nor a list of file names")


def check_text(text: str, where: str) -> str:
    """The text itself.

    Raises:
        BadRecordError: it holds half of a character (a lone surrogate), which no tokenizer and no file can take.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRecordError(
                "broken text", f"{where} holds half a character, \\u{ord(text[error.start]):04x}, at {error.start + 1}"
            ) from None
    return text


def _rows(columns: Mapping[str, Any]) -> object:
    """{"from": [..], "value": [..]} as a list of objects; anything else as it is."""
    lists = list(columns.values())
    if not lists or not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _message(number: int, entry: object) -> Message:
    if not isinstance(entry, Mapping):
        raise BadRecordError(NOT_A_RECORD, f"message {number} is not an object")
    said_by = _first(entry, "from", "role")
    speaker = _SPEAKERS.get(said_by.strip().lower()) if isinstance(said_by, str) else None
    if speaker is None:
        raise BadRecordError(NOT_A_RECORD, f"message {number} is from {said_by!r}; expected 'human' or 'gpt'")
    if entry.get("tool_calls") not in (None, []):
        raise BadRecordError(NOT_A_RECORD, f"message {number} calls tools; only images and text are read")
    content = _first(entry, "value", "content")
    where = f"message {number}"
    if isinstance(content, list) and any(isinstance(part, Mapping) for part in content):
        return _message_of_parts(speaker, content, where)
    if isinstance(content, list) and content and speaker == "gpt":
        # Several people's answers to one question: the one that most gave, the first of those that as many gave.
        texts = [_text(one, where) for one in content]
        return Message(speaker, Counter(texts).most_common(1)[0][0])
    return Message(speaker, _text(content, where))


def _message_of_parts(speaker: str, parts: list[Any], where: str) -> Message:
    text, images = "", list[ImageReference]()
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            text += _text(part.get("text"), where)
        elif kind in ("image", "image_url"):
            text += f"{IMAGE_MARK}\n"
            named = _first(part, "image", "image_url", "url", "path")
            if named is not None:
                images.append(image_reference(named, f"an image of {where}"))
        else:
            raise BadRecordError(NOT_A_RECORD, f"{where} holds {part!r}; expected a text or an image")
    return Message(speaker, text, tuple(images))


def _text(found: object, where: str) -> str:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return json.dumps(found)  # a number that is an answer: as JSON writes it
    if not isinstance(found, str):
        raise BadRecordError(NOT_A_RECORD, f"{where} has no text in 'value' or 'content'")
    return check_text(found, where)


def _first(entry: Mapping[str, Any], *keys: str) -> Any:
    """What the first key holds that holds anything: rows of a table have all keys that any row has."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)
