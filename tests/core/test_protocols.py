"""What the core reads of a component stands in a protocol."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from checkout import CORE

import linearize.protocols as protocols
from linearize.plugin.guard import protocol_members

COMPONENTS = {"adapter", "mixer", "seeder", "layout", "source", "benchmark", "objective", "schedule"}
"""What components are called where the core uses them."""


def optional_reads(module: Path) -> Iterator[tuple[str, str]]:
    """Place and name of every member that a component may lack: read by getattr or hasattr."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            of, name = node.args[:2]
            called = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
            if called in COMPONENTS and isinstance(name, ast.Constant):
                yield f"{module.relative_to(CORE)}:{node.lineno}", name.value


def test_every_member_that_the_core_looks_for_in_a_component_stands_in_a_protocol() -> None:
    named = [vars(protocols)[name] for name in protocols.__all__]
    known = {member for kind in named if getattr(kind, "_is_protocol", False) for member in protocol_members(kind)}
    read = [found for module in CORE.rglob("*.py") for found in optional_reads(module)]
    assert read
    assert [f"{place} reads `{name}`" for place, name in read if name not in known] == []
