"""What pydantic found wrong with a table, in the words and by the paths of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from linearize.errors import did_you_mean

TOLD = "told"
"""Type of an error whose message is complete: a component inside the options of another has described it."""

Path = tuple[int | str, ...]


def describe_validation(
    error: ValidationError, model: type[BaseModel], prefix: str = "", tables: Any = None, also: Sequence[str] = ()
) -> list[str]:
    """Pydantic's findings as "toml.path: what is wrong; got VALUE", with a suggestion for misspelt keys.

    Args:
        prefix: path of the table that was validated.
        tables: the whole recipe, where entries of its lists are to be told by name.
        also: keys that the table may have beside those of ``model``, such as a component's ``type``.
    """
    lines = []
    for location, text, _ in find_problems(error, model, also):
        path = ".".join([prefix, *map(str, location)] if prefix else map(str, location))
        lines.append(f"{told_path(path, tables) or 'recipe'}: {text}")
    return lines


def told_path(path: str, tables: Any) -> str:
    """A path as people read it: "stages.0.lr" is "stages.distill.lr", which --set takes too.

    An entry of a list without a name keeps its number.
    """
    keys, here = [], tables
    for key in path.split("."):
        if isinstance(here, list) and key.isdigit() and int(key) < len(here):
            here = here[int(key)]
            keys.append(entry_name(here) or key)
        else:
            here = here.get(key) if isinstance(here, dict) else None
            keys.append(key)
    return ".".join(keys)


def entry_name(entry: Any) -> str:
    """The name of a list's entry, such as a stage's; "" where it has none."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else ""


def find_problems(
    error: ValidationError, model: type[BaseModel], also: Sequence[str] = ()
) -> Iterator[tuple[Path, str, Any]]:
    """Where in the table, what is wrong there, and what stands there; ``also``: see ``describe_validation``."""
    items = error.errors()
    for item in items:
        inside = [other for other in items if other is not item and other["loc"][: len(item["loc"])] == item["loc"]]
        if item["type"] == "too_short" and inside:
            continue  # pydantic counts the entries that it has just refused as missing
        location = item["loc"]
        if item["type"] == "missing":
            text = "is required"
        elif item["type"] == "extra_forbidden":
            known = [*(also if len(location) == 1 else ()), *_keys_at(model, [str(part) for part in location[:-1]])]
            near = did_you_mean(str(location[-1]), known)
            text = f"unknown key; got {item['input']!r}.{near} Known: {', '.join(known)}"
        elif item["type"] == TOLD:
            text = item["msg"]
        else:
            shown = repr(item["input"])
            text = f"{item['msg'].removeprefix('Value error, ')}; got {_cut(shown)}"
        yield location, text, item["input"]


def _cut(shown: str) -> str:
    return shown if len(shown) < 120 else shown[:117] + "..."


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    current: Any = model
    for part in location:
        fields = getattr(current, "model_fields", {})
        if part in fields:
            current = _model_inside(fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _model_inside(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_model_inside(argument) for argument in getattr(annotation, "__args__", ())]
    return next((candidate for candidate in inner if candidate is not None), None)
