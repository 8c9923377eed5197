"""The core names no mixer, teacher, data, benchmark, schedule or format that a plug-in brings, ours included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from checkout import CORE

from linearize.plugin.discovery import Plugins

OF_LIBRARIES = {"transformers", "sliding_window"}
"""Names of components that are names of a library or of its configuration, too."""


def texts(module: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module's code with its line; docstrings, which may cite where something is from, are none."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def test_no_text_of_the_core_names_a_component_of_a_plugin(plugins: Plugins) -> None:
    names = {spec.name for record in plugins.records if record.name != "core" for spec in record.specs} - OF_LIBRARIES
    pattern = re.compile(rf"(?<![\w.])({'|'.join(sorted(names))})(?!\w)", re.IGNORECASE)
    found = [
        f"{module.relative_to(CORE)}:{line}: {text!r}"
        for module in sorted(CORE.rglob("*.py"))
        for line, text in texts(module)
        if pattern.search(text)
    ]
    assert found == []
