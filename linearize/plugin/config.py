"""The base of every typed table of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from linearize.plugin.tables import merge


class Config(BaseModel):
    """Options of one component: frozen, and an unknown key is an error.

    A field whose default is a component, written as a table with its ``type``, takes a table without a ``type`` as
    changes of that default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _lay_over_default_components(cls, table: Any) -> Any:
        return cls.with_default_components(table) if isinstance(table, Mapping) else table

    @classmethod
    def with_default_components(cls, table: Mapping[str, Any]) -> dict[str, Any]:
        """The table with its partial components laid over their defaults, and the absent ones put in."""
        completed = dict(table)
        for name, field in cls.model_fields.items():
            default, given = field.default, table.get(name, {})
            if isinstance(default, Mapping) and "type" in default and isinstance(given, Mapping):
                completed[name] = dict(given) if "type" in given else merge(dict(default), dict(given))
        return completed
