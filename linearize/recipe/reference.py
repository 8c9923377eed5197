"""The recipe reference, made from the models that check recipes.

``python -m linearize.recipe.reference > docs/recipe.md`` writes the page.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from linearize.plugin.components import ComponentOf
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import KINDS, FormatSpec, Spec
from linearize.recipe.compare_table import CompareTable
from linearize.recipe.model import Component, Recipe
from linearize.recipe.toml import to_inline

OWN_ORIGINS = ("linearize", "checkout")
"""Where plug-ins of this repository come from: installed with linearize, or found beside it."""

COMPONENT_KEYS: Mapping[str, str] = {
    "teacher": "teacher",
    "student.mixer": "mixer",
    "student.layout": "layout",
    "student.seeder": "seeder",
    "data": "data",
    "schedule": "schedule",
    "stages.objective": "objective",
    "evaluate.benchmarks": "benchmark",
}
"""Keys that hold a component -> the kind of component."""

INTRODUCTION = """\
# Recipe reference

A recipe is one TOML file; `linearize check` says everything that is wrong with it. This page is made from the models
that do the checking: `python -m linearize.recipe.reference > docs/recipe.md`, and a test keeps it current.

- **Components.** A table with `type` names a component; its other keys are that component's options, listed below by
  kind. `linearize plugins` lists what is installed, other people's plug-ins included.
- **`extends = "other.toml"`** at the top of a file lays it over another one, found relative to it. Tables are merged
  key by key; a table whose `type` changes is replaced; stages are matched by `name`; other lists are replaced.
- **`--set path.to.key=value`** changes one key of the merged recipe, as often as it is given. Values are TOML
  (`--set run.seed=3`, `--set 'stages.distill.train=["new"]'`), and plain text where that is no TOML
  (`--set student.mixer.type=gla`). Stages are entered by number, from 0, or by name. Setting a `type` to another value
  drops the options of the old one.
- **Paths** in options, such as `data.path`, start at the current directory, as those on the command line do; only
  `extends` starts at the file that says it. The resolved recipe in a run folder means the same from the same directory.
- **`schedule`** makes stages; `[[stages]]` with the same `name` change keys of them, and others are added behind.
- **`[compare]`** belongs to `linearize compare`, see [compare.md](compare.md); a single run refuses it.
- **Absent** below means that the key is left out and nothing takes its place.
"""


def recipe_reference(plugins: Plugins) -> str:
    """The whole page, of the core's tables and the components that come with linearize."""
    lines = [INTRODUCTION, "## Tables", ""]
    lines += _table_section("", "", Recipe)
    lines += _table_section("[compare]", "compare", CompareTable)
    specs = [spec for record in plugins.records if record.origin in OWN_ORIGINS for spec in record.specs]
    for kind in KINDS:
        if kind is not FormatSpec:
            own = sorted((spec for spec in specs if type(spec) is kind), key=lambda spec: spec.name)
            lines += [f"## Components: {kind.kind}", "", *(line for spec in own for line in _component_section(spec))]
    return "\n".join(lines).rstrip() + "\n"


def _component_section(spec: Spec) -> Iterator[str]:
    yield from (f"### {spec.kind} `{spec.name}`", "", f"{_sentence(spec.summary)} Source: <{spec.source}>", "")
    model = spec.config_class()
    if not model.model_fields:
        yield from ("No options.", "")
        return
    yield from _key_table(model, "")
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _table_section(f"{spec.kind} {spec.name}: {name}", name, inner)


def _table_section(heading: str, path: str, model: type[BaseModel]) -> Iterator[str]:
    """A heading, the model's docstring, its keys, and then the tables inside it."""
    if heading:
        yield from (f"### `{heading}`", "")
        if model.__doc__:
            yield from (model.__doc__.strip().splitlines()[0], "")
    yield from _key_table(model, path)
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and inner is not Component:
            below = f"{path}.{name}" if path else name
            is_list = _origin(field.annotation) in (tuple, list)
            yield from _table_section(f"[[{below}]]" if is_list else f"[{below}]", below, inner)


def _key_table(model: type[BaseModel], path: str) -> Iterator[str]:
    yield from ("| key | type | default | what it is |", "| --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        below = f"{path}.{name}" if path else name
        cells = (f"`{name}`", _type(field, below), _default(field), _description(field, below))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _description(field: FieldInfo, path: str) -> str:
    inner = _model_in(field.annotation)
    if field.description:
        text = field.description
    elif inner is Component:
        text = f"which {COMPONENT_KEYS[path]}; see the components below"
    else:
        text = ((inner and inner.__doc__) or "").strip().partition("\n")[0]
    return re.sub(r"<(?=\w)", "&lt;", text)  # a placeholder such as <name> is no HTML


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _type(field: FieldInfo, path: str) -> str:
    component = next((item for item in field.metadata if isinstance(item, ComponentOf)), None)
    if component is not None:
        return f"{component.kind.kind} table"
    return ", ".join((_type_name(field.annotation, path), *filter(None, map(_constraint, field.metadata))))


def _type_name(annotation: Any, path: str = "") -> str:
    origin, arguments = _origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [item for extra in arguments[1:] for item in getattr(extra, "metadata", [extra])]
        return _type_name(arguments[0], path) + "".join(f" {words}" for words in map(_constraint, limits) if words)
    if origin is typing.Literal:
        return " or ".join(f"`{to_inline(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part, path) for part in arguments if part is not types.NoneType)
    if origin in (tuple, list):
        if len(arguments) == 2 and arguments[1] is not Ellipsis:
            return f"[{_type_name(arguments[0])}, {_type_name(arguments[1])}]"
        inside = _type_name(arguments[0], path)
        return f"list of {inside}s" if inside.endswith("table") else f"list of {inside}"
    if origin is dict and arguments[1] is Any:
        return "table"
    if origin is dict:
        return f"table of {_type_name(arguments[1])} by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{COMPONENT_KEYS[path]} table" if annotation is Component else "table"
    names = {str: "text", Path: "path", bool: "`true` or `false`", int: "integer", float: "number"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _constraint(metadata: Any) -> str:
    """One limit of pydantic's, such as Gt(gt=0), in signs."""
    for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        limit = getattr(metadata, attribute, None)
        if limit is not None:
            return f"{sign} {limit:g}"
    if getattr(metadata, "pattern", None):
        return f"matching `{metadata.pattern}`"
    return ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{to_inline(value)}`"


def _origin(annotation: Any) -> Any:
    return typing.Annotated if hasattr(annotation, "__metadata__") else typing.get_origin(annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, inside a list or an alternative too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


if __name__ == "__main__":
    print(recipe_reference(Plugins.discover()), end="")
