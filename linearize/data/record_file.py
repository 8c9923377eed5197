"""Files of JSON records, found once and then read one record at a time, so that memory holds positions only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from linearize.errors import DataError, did_you_mean_path

_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record's place in the file, and its JSON value.

    Attributes:
        number: its line in a JSONL file, its place in an array, from 1.
        offset: of its first byte in the file.
        length: in bytes.
        fault: why it is no JSON; "" when ``value`` holds it.
        unit: what ``number`` counts: lines, or the records of an array, many of which may share a line.
    """

    number: int
    offset: int
    length: int
    value: object = None
    fault: str = ""
    unit: str = "line"


def scan_entries(path: Path) -> Iterator[Entry]:
    """Every record of a JSONL file, or of a file that is one JSON array, in order.

    A malformed line of a JSONL file yields an entry with a fault, and the scan goes on; blank lines are no entries. An
    array is held in memory while it is scanned.

    Raises:
        DataError: the file cannot be read, is not in UTF-8, or is an array that is malformed somewhere (named by line
            and column).
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(4096)
        _refuse_encoding(path, start)
        head = start.removeprefix(_BOM).lstrip()
        if head.startswith(b"["):
            yield from _scan_array(path)
        else:
            yield from _scan_lines(path)
    except OSError as error:
        reason = error.strerror or error
        text = f"'{path}' cannot be read: {reason}.{did_you_mean_path(path)}"
        raise DataError(text, option="path", found=str(path)) from error


def read_entry(path: Path, offset: int, length: int) -> object:
    """The JSON value at a place that ``scan_entries`` found.

    Raises:
        ValueError: there is no JSON value there any more.
        OSError: the file cannot be read.
    """
    # Opened anew each time: no handle to share between threads or processes, and the system's cache makes it cheap.
    with path.open("rb") as handle:
        handle.seek(offset)
        return json.loads(handle.read(length))


def _refuse_encoding(path: Path, start: bytes) -> None:
    """UTF-16 and UTF-32 show by their byte-order mark, or by the zeros in a first character that JSON begins with."""
    encoding = json.detect_encoding(start).upper()
    if not encoding.startswith("UTF-8"):
        text = f"'{path}' is in {encoding}; expected UTF-8. Convert it: iconv -f {encoding[:6]} -t UTF-8"
        raise DataError(text, option="path", found=str(path))


def _scan_lines(path: Path) -> Iterator[Entry]:
    offset = 0
    with path.open("rb") as handle:
        for line, whole in enumerate(handle, start=1):
            raw = whole.removeprefix(_BOM) if line == 1 else whole
            start = offset + len(whole) - len(raw)
            raw = raw.rstrip()
            if raw:
                try:
                    yield Entry(line, start, len(raw), value=json.loads(raw))
                except (ValueError, RecursionError) as error:
                    yield Entry(line, start, len(raw), fault=_fault(error))
            offset += len(whole)


def _fault(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return f"{error.msg.removesuffix(' at')} at column {error.colno}"
        case UnicodeDecodeError():
            return f"byte {error.start + 1} of the line is not UTF-8"
        case _:
            return str(error)


def _scan_array(path: Path) -> Iterator[Entry]:
    raw = path.read_bytes()
    shift = len(_BOM) if raw.startswith(_BOM) else 0
    try:
        text = raw[shift:].decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, shift + error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8. {_ARRAY_ADVICE}") from error
    del raw
    decoder = json.JSONDecoder()
    number, line, offset, counted = 0, 1, shift, 0  # line, offset: of the character at `counted`
    position = _skip_space(text, _skip_space(text, 0) + 1)
    ended = text[position : position + 1] == "]"
    try:
        while not ended:
            value, end = decoder.raw_decode(text, position)
            line += text.count("\n", counted, position)
            offset += len(text[counted:position].encode())
            counted = position
            number += 1
            yield Entry(number, offset, len(text[position:end].encode()), value=value, unit="record")
            position = _skip_space(text, end)
            ended = text[position : position + 1] == "]"
            if not ended:
                if text[position : position + 1] != ",":
                    raise json.JSONDecodeError("expected ',' or ']'", text, position)
                position = _skip_space(text, position + 1)
        rest = _skip_space(text, position + 1)
        if rest != len(text):
            raise json.JSONDecodeError("something follows the array", text, rest)
    except (ValueError, RecursionError) as error:
        if not isinstance(error, json.JSONDecodeError):  # nested too deeply, or a number of thousands of digits
            raise DataError(f"{path}, the record after line {line}: {error}. {_ARRAY_ADVICE}") from error
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg.removesuffix(' at')}. {_ARRAY_ADVICE}"
        ) from error


_ARRAY_ADVICE = (
    "A JSON array cannot be read past a fault: mend it there, or store one record per line (JSONL), "
    "where a bad line is skipped by itself."
)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty string
    return match.end()
