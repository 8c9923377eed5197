"""What is wrong with a file that is no TOML: where, in which line, and what was left open before."""

from __future__ import annotations

import re
import tomllib

_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""' r"|'''.*?'''" r'|"""|' r"'''" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'|#[^\n]*|[\[\]{}]",
    re.DOTALL,
)
_PAIRS = {"[": "]", "{": "}"}


def describe_fault(text: str, error: tomllib.TOMLDecodeError) -> str:
    """The fault in one sentence with the text of its line.

    A bracket that was never closed makes the parser stumble later, often on the next table: its line is told too.
    """
    lines = text.splitlines() or [""]
    found = _PLACE.search(str(error))
    what = _PLACE.sub("", str(error))
    if found is None or found[1] is None:
        line, end = len(lines), len(text)
        place = f"at the end of the file, line {line}"
    else:
        line, column = int(found[1]), int(found[2])
        end = sum(len(one) for one in text.splitlines(keepends=True)[: line - 1]) + column - 1
        place = f"at line {line}, column {column}"
    told = f"is not valid TOML: {what} {place}"
    if line <= len(lines) and lines[line - 1].strip():
        told += f": `{lines[line - 1].strip()}`"
    opened = _left_open(text[:end])
    first = line if opened is None else text.count("\n", 0, opened.start()) + 1
    if opened is None or first == line:
        return told
    return f"{told}. The {opened[0]} of line {first} is not closed: `{lines[first - 1].strip()}`"


def _left_open(text: str) -> re.Match[str] | None:
    """The outermost bracket or long string that is open at the end of the text."""
    open_ones: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        if token[0] in ('"""', "'''"):
            return token
        if token[0] in _PAIRS:
            open_ones.append(token)
        elif open_ones and token[0] == _PAIRS[open_ones[-1][0]]:
            open_ones.pop()
    return open_ones[0] if open_ones else None
