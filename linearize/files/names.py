"""File names made of any text, and short names for data. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote


def file_name(*parts: str | int | None) -> str:
    """A file name without extension, different for different names, whatever characters they hold."""
    return ".".join(quote(str(part), safe="").replace(".", "%2E") for part in parts if part is not None)


def fingerprint(value: Any) -> str:
    """A short hash of JSON-able data, equal on every machine."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
