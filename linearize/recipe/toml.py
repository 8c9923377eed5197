"""Reading recipe files: `extends`, and typed overrides from the command line."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linearize.errors import Problem, RecipeError, did_you_mean, did_you_mean_path, entry_name
from linearize.plugin.tables import Table, merge
from linearize.recipe.toml_fault import describe_fault


def read_tables(path: Path, _children: tuple[Path, ...] = ()) -> Table:
    """The tables of a recipe file, laid over those of the files that it extends.

    Raises:
        RecipeError: the file is missing, is no TOML, or extends itself.
    """
    path = path.resolve()
    if path in _children:
        chain = " -> ".join(child.name for child in (*_children, path))
        raise RecipeError(
            path.name, [Problem("extends", f"files extend each other in a circle ({chain})", code="circle")]
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            path.name,
            [Problem("", f"there is no such file in {path.parent}.{did_you_mean_path(path)}", code="no_file")],
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(path.name, [Problem("", f"cannot be read: {error}", code="unreadable")]) from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(path.name, [Problem("", describe_fault(text, error), code="toml")]) from error
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    if not isinstance(parent, str):
        text = f"expected the name of one recipe file; got {parent!r}"
        raise RecipeError(path.name, [Problem("extends", text, parent, "string_type")])
    return merge(read_tables(path.parent / parent, (*_children, path)), tables)


def apply_override(tables: Table, override: str) -> None:
    """Sets one key in place from "path.to.key=value"; the value is read as TOML, and as plain text when it is not.

    Lists are entered by number ("stages.2.steps") or by name ("stages.distill.steps").

    Raises:
        RecipeError: the override has no '=', or its path runs through something that is not a table or list entry.
    """
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        text = f"--set {override}: expected path.to.key=value, such as stages.distill.steps=200"
        raise _refused(override, "", text, "override")
    target: Any = tables
    for depth, key in enumerate(keys[:-1]):
        target = _enter(target, key, ".".join(keys[: depth + 1]), override)
    value = _parse_value(text.strip())
    if isinstance(target, list):
        target[_position(target, keys[-1], path, override)] = value
    elif keys[-1] == "type" and target.get("type") != value:
        target.clear()
        target["type"] = value
    else:
        target[keys[-1]] = value


def _enter(target: Any, key: str, path: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, key, path, override)]
    child = target.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise _refused(override, path, f"holds {child!r}, which is no table to set a key in", "no_table", child)
    return child


def _position(items: list[Any], key: str, path: str, override: str) -> int:
    names = [entry_name(item) or str(number) for number, item in enumerate(items)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    near, known = did_you_mean(key, names), ", ".join(names) or "none"
    raise _refused(override, path, f"there is no entry '{key}'.{near} There are: {known}", "unknown_entry", key)


def _refused(override: str, path: str, text: str, code: str, found: Any = None) -> RecipeError:
    return RecipeError(f"--set {override}", [Problem(path, text, found, code)])


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_inline(value: Any) -> str:
    """A value as TOML on one line, tables inline.

    Raises:
        TypeError: a recipe cannot hold such a value; None is said by leaving the key out.
    """
    if isinstance(value, Mapping):
        items = ", ".join(f"{_inline_key(str(key))} = {to_inline(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_inline, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise TypeError(f"expected a text, number, truth value, list or table as a recipe value; got {value!r}")


def _inline_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_bare else json.dumps(key, ensure_ascii=False)
