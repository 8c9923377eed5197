"""Imports inside the core run one way, and no name of a plug-in stands in its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import CORE

LAYERS = (
    "_version", "errors", "wording", "protocols", "files", "plugin", "ops", "mixing", "recipe", "plan", "data",
    "student", "proof", "distill", "evaluate", "report", "pipeline", "inference", "comparison", "scaffold", "testing",
    "auto", "api", "cli", "__main__",
)  # fmt: skip
"""Packages and modules of the core; each imports only from those before it, and the package's front from no layer."""
MODULES = sorted(CORE.rglob("*.py"))


def layer_of(module: Path) -> str:
    return module.relative_to(CORE).parts[0].removesuffix(".py")


def imported_layers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and layer of everything of linearize that is imported, for types and inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "linearize":
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("linearize."):
            yield node.lineno, str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((node.lineno, name[1]) for name in names if name[0] == "linearize" and name[1:])


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_from_those_below_it(layer: str) -> None:
    below = LAYERS[: LAYERS.index(layer) + 1]
    arrows_up = [
        f"{module.relative_to(CORE.parent)}:{line} imports {target}"
        for module in MODULES
        if layer_of(module) == layer
        for line, target in imported_layers(ast.parse(module.read_text(encoding="utf-8")))
        if target not in below
    ]
    assert arrows_up == []
