"""The checks of a conformance class, run outside pytest."""

from __future__ import annotations

from typing import Any

import pytest


def failing(kit: type[Any]) -> set[str]:
    """The checks of a conformance class that do not pass; a skipped one counts as passed."""
    names = set()
    for name in checks(kit):
        try:
            getattr(kit(), name)({})
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception):
            names.add(name)
    return names


def checks(kit: type[Any]) -> list[str]:
    return [name for name in dir(kit) if name.startswith("test_")]
