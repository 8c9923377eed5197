"""Standard output that a run survives: it takes any character, and where it cannot be written to it falls silent."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any, TextIO

PLAIN = {"→": "->", "–": "-", "—": "-", "…": "...", "·": "*", "×": "x", "≥": ">=", "≤": "<=", "±": "+-", "─": "-"}
"""What stands for a character that the encoding of a stream lacks; any other becomes a question mark."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("linearize_plain", _replaced)


def take_any_character() -> None:
    """Makes stdout and stderr write what their encoding lacks in plain characters instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="linearize_plain")


class FallsSilent:
    """A text stream whose first failure (a full disk, a closed pipe) ends its output and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_silent = False

    def write(self, text: str) -> int:
        """Writes, unless an earlier write failed."""
        if not self._is_silent:
            try:
                return self._stream.write(text)
            except OSError:
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        """Flushes, unless an earlier write failed."""
        if not self._is_silent:
            try:
                self._stream.flush()
            except OSError:
                self._fall_silent()

    def _fall_silent(self) -> None:
        self._is_silent = True
        # What is buffered would fail again when the interpreter ends; it goes where nothing fails.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
