"""The JSON Schema of a recipe with the components that are registered: for editors, and for the reference page.

It says which keys there are and which values they take. Which keys have to be there it does not say, since a file may
leave out what it ``extends`` or what a schedule gives: that is for ``linearize check``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from linearize.errors import PluginError
from linearize.plugin.components import COMPONENT_KEY
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import KINDS, FormatSpec, KernelSpec, Spec
from linearize.recipe.compare_table import CompareTable
from linearize.recipe.model import Recipe

DIALECT = GenerateJsonSchema.schema_dialect
NOTHING = {"type": "null"}
Schema = dict[str, Any]


def recipe_schema(plugins: Plugins) -> Schema:
    """The schema of a recipe file, as JSON values. A component whose options cannot be imported takes any."""
    definitions: dict[str, Schema] = {}
    whole = model_schema(Recipe, "", definitions)
    whole["properties"] |= {
        "extends": {"type": "string", "description": "another recipe file that this one is laid over"},
        "compare": model_schema(CompareTable, "", definitions),
    }
    for kind in KINDS:
        if kind not in (FormatSpec, KernelSpec):
            definitions[kind.kind] = _kind(plugins.registry.all(kind), definitions)
    schema = {"$schema": DIALECT, **whole, "title": "linearize recipe", "$defs": definitions}
    for part in _parts(schema):
        part.pop("required", None)
        if COMPONENT_KEY in part:
            part["$ref"] = f"#/$defs/{part.pop(COMPONENT_KEY)}"
        if NOTHING in part.get("anyOf", []):  # TOML has no null; a key that is absent is left out
            part["anyOf"] = [choice for choice in part["anyOf"] if choice != NOTHING]
            part.pop("default", None)
    return schema


def _kind(specs: list[Any], definitions: dict[str, Schema]) -> Schema:
    """Any component of one kind: its `type`, and then its options alone."""
    choices = []
    for spec in specs:
        name = f"{spec.kind}.{spec.name}"
        definitions[name] = component_schema(spec, definitions)
        condition = {"properties": {"type": {"const": spec.name}}, "required": ["type"]}
        choices.append({"if": condition, "then": {"$ref": f"#/$defs/{name}"}})
    names = {"oneOf": [{"const": spec.name, "description": spec.summary} for spec in specs]}
    return {"type": "object", "properties": {"type": names}, "allOf": choices}


def component_schema(spec: Spec, definitions: dict[str, Schema]) -> Schema:
    """Of a component's table with its `type` and options; of any table where the options cannot be imported."""
    try:
        model = spec.config_class()
    except PluginError:
        return {"description": spec.summary}
    schema = model_schema(model, f"{spec.kind}.{spec.name}.", definitions)
    schema["properties"] = {"type": {"const": spec.name}, **schema.get("properties", {})}
    return {**schema, "description": f"{spec.summary} ({spec.source})"}


def model_schema(model: type[BaseModel], prefix: str, definitions: dict[str, Schema]) -> Schema:
    """A model's own schema; those of the models in it go into ``definitions``, under names that begin with a prefix."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    definitions |= {prefix + name: inner for name, inner in schema.pop("$defs", {}).items()}
    return schema


def _parts(schema: Schema) -> Iterator[Schema]:
    """The schema and all schemas in it; the conditions of ``if`` stay as they are."""
    yield schema
    for key, inner in schema.items():
        if key in ("properties", "$defs"):
            inside = list(inner.values())
        elif key in ("items", "then", "additionalProperties"):
            inside = [inner]
        else:
            inside = inner if key in ("anyOf", "allOf", "prefixItems") else []
        for part in inside:
            if isinstance(part, dict):
                yield from _parts(part)
