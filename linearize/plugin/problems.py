"""What pydantic found wrong with a table, in the words and by the paths of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from linearize.errors import Problem, did_you_mean, entry_name

DESCRIBED = "described"
"""Type of an error whose message is complete: a component inside the options of another has described it."""


class Finding(NamedTuple):
    """A problem by its place in the table that was validated."""

    location: tuple[int | str, ...]
    text: str
    found: Any
    code: str


def describe_validation(
    error: ValidationError, model: type[BaseModel], prefix: str = "", tables: Any = None, also: Sequence[str] = ()
) -> list[Problem]:
    """Pydantic's findings as problems, with a suggestion for misspelt keys.

    Args:
        prefix: path of the table that was validated.
        tables: the whole recipe, where entries of its lists are to be told by name.
        also: keys that the table may have beside those of ``model``, such as a component's ``type``.
    """
    problems = []
    for location, text, found, code in find_problems(error, model, also):
        path = ".".join([prefix, *map(str, location)] if prefix else map(str, location))
        problems.append(Problem(named_path(path, tables), text, found, code))
    return problems


def named_path(path: str, tables: Any) -> str:
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


def find_problems(error: ValidationError, model: type[BaseModel], also: Sequence[str] = ()) -> Iterator[Finding]:
    """What is wrong where in the table; ``also``: see ``describe_validation``."""
    items = error.errors()
    for item in items:
        inside = [other for other in items if other is not item and other["loc"][: len(item["loc"])] == item["loc"]]
        if item["type"] == "too_short" and inside:
            continue  # pydantic counts the entries that it has just refused as missing
        location, found, code = item["loc"], item["input"], item["type"]
        if code == "missing":
            text, found = "is required", None
        elif code == "extra_forbidden":
            known = [*(also if len(location) == 1 else ()), *_keys_at(model, [str(part) for part in location[:-1]])]
            near = did_you_mean(str(location[-1]), known)
            text, code = f"unknown key; got {found!r}.{near} Known: {', '.join(known)}", "unknown_key"
        elif code == DESCRIBED:
            text, code = item["msg"], item["ctx"]["code"]
        elif code == "model_type":
            text = f"expected a table{_example(item)}; got {_cut(repr(found))}"
        else:
            text = f"{item['msg'].removeprefix('Value error, ')}; got {_cut(repr(found))}"
        yield Finding(location, text, found, code)


def _example(item: ErrorDetails) -> str:
    """What to write in its place, where somebody wrote a component's type without a table around it."""
    is_component = item.get("ctx", {}).get("class_name") == "Component"
    return f' such as {{ type = "{item["input"]}" }}' if is_component and isinstance(item["input"], str) else ""


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
