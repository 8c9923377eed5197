"""The recipe reference, made from the JSON Schema of recipes.

``python -m linearize.recipe.reference > docs/recipe.md`` writes the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from linearize.plugin.components import COMPONENT_KEY
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import KINDS, FormatSpec, KernelSpec, Spec
from linearize.recipe.compare_table import CompareTable
from linearize.recipe.model import Recipe
from linearize.recipe.schema import NOTHING, Schema, component_schema, model_schema
from linearize.recipe.toml import to_inline

OWN_ORIGINS = ("linearize", "checkout")
"""Where plug-ins of this repository come from: installed with linearize, or found beside it."""

INTRODUCTION = """\
# Recipe reference

A recipe is one TOML file; `linearize check` says everything that is wrong with it. This page is made from the same
JSON Schema as editors use: `python -m linearize.recipe.reference > docs/recipe.md`, and a test keeps it current.

- **Components.** A table with `type` names a component; its other keys are that component's options, listed below by
  kind. `linearize plugins` lists what is installed, other people's plug-ins included.
- **`extends = "other.toml"`** at the top of a file lays it over another one, found relative to it. Tables are merged
  key by key; a table whose `type` changes is replaced; stages are matched by `name`; other lists are replaced.
- **`--set path.to.key=value`** changes one key of the merged recipe, as often as it is given. Values are TOML
  (`--set run.seed=3`, `--set 'stages.distill.train=["new"]'`), and plain text where that is no TOML
  (`--set run.name=other`). Stages are entered by number, from 0, or by name. Setting a `type` to another value
  drops the options of the old one.
- **Paths** in options, such as `data.path`, start at the current directory, as those on the command line do; only
  `extends` starts at the file that says it. The resolved recipe in a run folder means the same from the same directory.
- **`schedule`** makes stages; `[[stages]]` with the same `name` change keys of them, and others are added behind.
- **`[compare]`** belongs to `linearize compare`, see [compare.md](compare.md); a single run refuses it.
- **Editors.** `linearize schema > recipe.schema.json` writes a JSON Schema of recipes, other people's plug-ins too;
  with the line `#:schema recipe.schema.json` at the top of a recipe, editors that know TOML complete and check keys.
- **Absent** below means that the key is left out and nothing takes its place.
"""


def recipe_reference(plugins: Plugins) -> str:
    """The whole page, of the core's tables and the components that come with linearize."""
    lines = [INTRODUCTION, "## Tables", ""]
    for path, model in (("", Recipe), ("compare", CompareTable)):
        definitions: dict[str, Schema] = {}
        lines += _table_section(model_schema(model, "", definitions), path, definitions)
    specs = [spec for record in plugins.records if record.origin in OWN_ORIGINS for spec in record.specs]
    for kind in KINDS:
        if kind not in (FormatSpec, KernelSpec):
            own = sorted((spec for spec in specs if type(spec) is kind), key=lambda spec: spec.name)
            lines += [f"## Components: {kind.kind}", "", *(line for spec in own for line in _component_section(spec))]
    return "\n".join(lines).rstrip() + "\n"


def _component_section(spec: Spec) -> Iterator[str]:
    yield from (f"### {spec.kind} `{spec.name}`", "", f"{_sentence(spec.summary)} Source: <{spec.source}>", "")
    definitions: dict[str, Schema] = {}
    schema = component_schema(spec, definitions)
    del schema["properties"]["type"]
    if not schema["properties"]:
        yield from ("No options.", "")
        return
    yield from _key_table(schema, definitions)
    for name, field in schema["properties"].items():
        inner = _model_in(field, definitions)
        if inner is not None:
            yield from _table_section(inner, name, definitions, f"{spec.kind} {spec.name}: {name}")


def _table_section(schema: Schema, path: str, definitions: dict[str, Schema], heading: str = "") -> Iterator[str]:
    """A heading, what the table is, its keys, and then the tables inside it."""
    if path:
        yield from (f"### `{heading or f'[{path}]'}`", "", _first_line(schema), "")
    yield from _key_table(schema, definitions)
    for name, field in schema["properties"].items():
        inner = _model_in(field, definitions)
        if inner is not None:
            below = f"{path}.{name}" if path else name
            yield from _table_section(inner, below, definitions, f"[[{below}]]" if "items" in field else "")


def _key_table(schema: Schema, definitions: dict[str, Schema]) -> Iterator[str]:
    yield from ("| key | type | default | what it is |", "| --- | --- | --- | --- |")
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else _default(field)
        cells = (f"`{name}`", _type(field), default, _description(field, definitions))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _description(field: Schema, definitions: dict[str, Schema]) -> str:
    kind = _only_choice(field).get(COMPONENT_KEY)
    inner = _model_in(field, definitions)
    text = field.get("description") or (inner and _first_line(inner)) or (kind and f"which {kind}; see below") or ""
    return re.sub(r"<(?=\w)", "&lt;", text)  # a placeholder such as <name> is no HTML


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None:
        return "absent"
    return "see below" if "$ref" in field else f"`{to_inline(value)}`"


def _type(field: Schema, comma: str = ", ") -> str:
    """What a value is, in words."""
    if _only_choice(field) is not field:
        return _type(_only_choice(field))
    if "anyOf" in field:
        return " or ".join(_type(choice, " ") for choice in field["anyOf"] if choice != NOTHING)
    if COMPONENT_KEY in field:
        return f"{field[COMPONENT_KEY]} table"
    if "$ref" in field:
        return "table"
    if "enum" in field or "const" in field:
        return " or ".join(f"`{to_inline(value)}`" for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"[{', '.join(map(_type, field['prefixItems']))}]"
    if field["type"] == "array":
        inside = _type(field["items"])
        return f"list of {inside}s" if inside.endswith("table") else f"list of {inside}"
    if field["type"] == "object":
        values = field.get("additionalProperties")
        return f"table of {_type(values, ' ')} by name" if isinstance(values, dict) and values else "table"
    names = {"string": "text", "boolean": "`true` or `false`"}
    name = "path" if field.get("format") == "path" else str(names.get(field["type"], field["type"]))
    return comma.join((name, *_limits(field)))


def _limits(field: Schema) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    yield from (f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field)
    if "pattern" in field:
        yield f"matching `{field['pattern']}`"


def _model_in(field: Schema, definitions: dict[str, Schema]) -> Schema | None:
    """The table that a field holds, in a list too; None of any other value and of components."""
    reference = _only_choice(field).get("$ref") or field.get("items", {}).get("$ref")
    return definitions[reference.removeprefix("#/$defs/")] if reference else None


def _only_choice(field: Schema) -> dict[str, Any]:
    """The field itself, or what it may be beside absent."""
    choices = [choice for choice in field.get("anyOf", ()) if choice != NOTHING]
    return choices[0] if len(choices) == 1 else field


def _first_line(schema: Schema) -> str:
    return str(schema.get("description", "")).strip().partition("\n")[0]


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


if __name__ == "__main__":
    print(recipe_reference(Plugins.discover()), end="")
