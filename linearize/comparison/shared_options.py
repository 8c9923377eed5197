"""What compared mixers have in common: options that are carried over, and those in which cells differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from linearize.errors import LinearizeError
from linearize.plugin.components import read_options
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec

if TYPE_CHECKING:
    from linearize.comparison.cells import Cell

Changes = tuple[tuple[str, Any], ...]
"""(key path, value), in the order in which they are made."""
MIXER_TYPE = "student.mixer.type"
SEPARATOR = "."


def carry_over(changes: Changes, mixer: Mapping[str, Any], plugins: Plugins) -> Changes:
    """A cell's changes, with the options of the recipe's mixer behind another type of mixer that takes them.

    Args:
        mixer: the recipe's ``student.mixer``, options as they are written there.
    """
    carried: list[tuple[str, Any]] = []
    for path, value in changes:
        carried.append((path, value))
        if path == MIXER_TYPE and value != mixer.get("type"):
            prefix = path.removesuffix("type")
            carried += [(f"{prefix}{name}", mixer[name]) for name in _taken(str(value), mixer, plugins)]
    return tuple(carried)


def differing_keys(cells: Sequence[Cell]) -> Iterator[tuple[str, Any, list[str]]]:
    """Key, value and the cells that have it, for every key that has not one value in all the cells that have the key.

    What a single mixer has and no other is left out with that: it is a part of the type that differs.
    """
    leaves = {cell.name: dict(_leaves(cell.checked.recipe.tables())) for cell in cells}
    for path in dict.fromkeys(path for own in leaves.values() for path in own):
        values: list[tuple[Any, list[str]]] = []
        for name, own in leaves.items():
            if path in own:
                found = next((names for value, names in values if value == own[path]), None)
                if found is None:
                    values.append((own[path], [name]))
                else:
                    found.append(name)
        if len(values) > 1:
            yield from ((path, value, names) for value, names in values)


def _taken(name: str, mixer: Mapping[str, Any], plugins: Plugins) -> Iterator[str]:
    """Options of ``mixer`` that the mixer of that name has too, with values that it takes."""
    try:
        model = plugins.registry.get(MixerSpec, name).config_class()
    except LinearizeError:
        return  # the check of the cell says what is wrong
    for option, value in mixer.items():
        if option in model.model_fields:
            try:
                read_options(model, {option: value}, plugins)
            except ValidationError as error:
                if any(item["loc"][:1] == (option,) for item in error.errors()):
                    continue
            yield option


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its path; entries of a list that have names by these, other lists whole."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}{SEPARATOR}{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        for one in value:
            yield from _leaves(one, f"{path}{SEPARATOR}{one['name']}")
    else:
        yield path, value
