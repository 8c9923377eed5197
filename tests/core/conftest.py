"""A small recipe that is right, and the plug-ins of the checkout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import tiny_recipe

from linearize.plugin.discovery import Plugins


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """What the checkout brings; tests only read it."""
    return Plugins.discover()


@pytest.fixture
def tables() -> dict[str, Any]:
    """A recipe without problems, as plain tables that a test may change."""
    return tiny_recipe()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a recipe file and returns its path."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
