"""JSON files, written whole or not at all, that never hold a number which JSON does not have. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linearize.errors import RunError
from linearize.files.names import fingerprint
from linearize.files.whole_file import write_text

SEAL = "sha256"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that ``path`` holds the old content or the new, whenever the process dies.

    Raises:
        RunError: the disk is full or not writable.
        ValueError: a number is infinite or none at all; what is measured has to be checked where it is measured.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error}. Make room or fix the permissions, then type the same command again"
        ) from error


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """As ``write_json``, with a hash of the content under "sha256", by which ``read_sealed`` finds damage."""
    write_json(path, {**content, SEAL: fingerprint(dict(content))})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content of a sealed file without its seal; None where there is none, or a damaged one.

    A file without a seal is of a version that wrote none, and is taken as it stands.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        return None
    seal = content.pop(SEAL, None)
    return content if seal is None or seal == fingerprint(content) else None


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
