"""Tables of a recipe laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Table = dict[str, Any]


def merge(base: Table, overlay: Table) -> Table:
    """``overlay`` laid over ``base``, table by table.

    A table whose ``type`` changes replaces the base's table: options of another component would make no sense in it.
    Lists of tables with a ``name`` (stages) are matched by name; new names come last. Other lists are replaced.
    """
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            changes_type = "type" in value and value["type"] != old.get("type")
            merged[key] = dict(value) if changes_type else merge(old, value)
        elif _are_named(old) and _are_named(value):
            merged[key] = merge_named(old or [], value)
        else:
            merged[key] = value
    return merged


def merge_named(base: Sequence[Table], overlay: Sequence[Table]) -> list[Table]:
    """Named tables of ``overlay`` laid over those of ``base`` with the same name; the base's order, then new ones."""
    merged = {table["name"]: table for table in base}
    for table in overlay:
        merged[table["name"]] = merge(merged.get(table["name"], {}), table)
    return list(merged.values())


def _are_named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "name" in item for item in value)
