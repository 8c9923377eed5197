"""A small recipe that is right, and the plug-ins of the checkout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linearize.plugin.discovery import Plugins

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "tests" / "fixtures" / "hovle_tiny"

TABLES: dict[str, Any] = {
    "run": {"name": "tiny"},
    "teacher": {"type": "hovle", "checkpoint": str(TEACHER)},
    "student": {"mixer": {"type": "mamba2"}},
    "data": {"type": "glance"},
    "stages": [
        {"name": "align", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 2, "lr": 1e-3},
        {"name": "distill", "objective": {"type": "logit_kl"}, "train": ["new", "qkv"], "steps": 3, "lr": 1e-3},
    ],
}


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """What the checkout brings; tests only read it."""
    return Plugins.discover()


@pytest.fixture
def tables() -> dict[str, Any]:
    """A recipe without problems, as plain tables that a test may change."""
    return copy.deepcopy(TABLES)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a recipe file and returns its path."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
