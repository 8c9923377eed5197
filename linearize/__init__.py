"""Turn a pretrained multimodal LLM into one that runs in linear time.

The names below load on first use, so that ``import linearize`` and the command line stay instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from linearize._version import __version__

if TYPE_CHECKING:
    from linearize.api import compare, load_student, load_teacher, run
    from linearize.student.static_state import static_cache

__all__ = ["__version__", "compare", "load_student", "load_teacher", "run", "static_cache"]


def __getattr__(name: str) -> Any:
    if name in ("compare", "load_student", "load_teacher", "run"):
        from linearize import api

        return getattr(api, name)
    if name == "static_cache":
        from linearize.student.static_state import static_cache

        return static_cache
    raise AttributeError(f"module 'linearize' has no attribute '{name}'")
