"""Reads the JSON files of a HoVLE folder; the model's code is not imported for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linearize.errors import CheckpointError
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.published_config import config_from_published

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """The table that a JSON file holds.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds no table.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; a HoVLE folder holds config.json and {WEIGHTS} or {INDEX}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}); copy it again from its source") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; expected a JSON table")
    return content


def read_config(folder: Path) -> HovleConfig:
    """The configuration of a folder in the published layout."""
    return config_from_published(read_json(folder / "config.json"))
