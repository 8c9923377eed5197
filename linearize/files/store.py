"""The files of an evaluation: one a finished piece of work, written whole or not at all, so that a stopped evaluation
goes on where it was. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from linearize.files.whole_file import written_whole

if TYPE_CHECKING:
    from linearize.protocols.conversation import Conversation


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that ``path`` holds the old content or the new, whenever the process dies."""
    with written_whole(path) as part, part.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def file_name(*parts: str | int | None) -> str:
    """A file name without extension, different for different names, whatever characters they hold."""
    return ".".join(quote(str(part), safe="").replace(".", "%2E") for part in parts if part is not None)


def fingerprint(questions: Sequence[Conversation]) -> list[list[str]]:
    """What tells whether stored results answer the same questions: id, last question and right answer of each."""
    return [[item.id, item.turns[-1].question, item.turns[-1].answer] for item in questions]
