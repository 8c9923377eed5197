"""From a recipe with what is to be varied to cells whose recipes are all checked; every problem is told at once."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from linearize.comparison.shared_options import MIXER_TYPE, Changes, carry_over
from linearize.errors import Problem, RecipeError
from linearize.plan.check import check_recipe
from linearize.plan.plan import CheckedRecipe
from linearize.plugin.discovery import Plugins
from linearize.plugin.problems import describe_validation
from linearize.plugin.tables import Table
from linearize.recipe.compare_table import CellTable, CompareTable
from linearize.recipe.load import read_source
from linearize.recipe.toml import apply_override, to_inline

TABLE = "compare"
YARDSTICK = {
    "run": "the runs of a comparison compute alike",
    "teacher": "what a student keeps is measured against one teacher",
    "evaluate": "cells that are asked other questions cannot be compared",
}
"""Tables that no cell may change, and why."""
NEW_ROLE = "new"


@dataclass(frozen=True, slots=True)
class Costs:
    """What a student costs, known without running it.

    Attributes:
        parameters_added: parameters of its mixers that take none of the teacher's projections (role "new").
        parameters_trained: parameters that any stage trains.
        state_bytes: recurrent state of one sequence over all linear sites, whatever its length.
        cache_bytes_per_token: keys and values of the sites that keep their attention.
    """

    parameters_added: int
    parameters_trained: int
    state_bytes: int
    cache_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant; ``checked`` is its recipe with the comparison's first seed."""

    name: str
    changes: Changes
    checked: CheckedRecipe
    costs: Costs

    def tables(self, seed: int) -> Table:
        """The resolved recipe of its run number ``seed``, from 0; a seed changes parameters and training data."""
        tables = self.checked.recipe.tables()
        tables["run"] |= {"name": f"{self.name}-seed-{seed}", "seed": tables["run"]["seed"] + seed}
        if "seed" in tables["data"]:
            tables["data"]["seed"] += seed
        return tables


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells of a comparison, checked.

    Attributes:
        name: of its folder.
        source: the recipe file as it was given; "recipe" for tables.
        teacher_cache_bytes_per_token: keys and values of all the teacher's attention.
    """

    name: str
    source: str
    options: CompareTable
    cells: tuple[Cell, ...]
    teacher_cache_bytes_per_token: int

    def runs(self) -> Iterator[tuple[Cell, int]]:
        """Every run, the first seed of all cells first, so that a stopped comparison compares all it can."""
        for seed, cell in itertools.product(range(self.options.seeds), self.cells):
            yield cell, seed

    def yardstick(self) -> Table:
        """What all cells have in common by rule."""
        tables = self.cells[0].checked.recipe.tables()
        return {name: tables[name] for name in YARDSTICK}


def plan_comparison(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    mixers: Sequence[str] | None = None,
    seeds: int | None = None,
    *,
    plugins: Plugins | None = None,
) -> Comparison:
    """The comparison that a recipe's ``[compare]`` table and the arguments describe.

    Args:
        overrides: of the recipe that all cells start from; keys of ``compare`` too.
        mixers: alternatives of student.mixer.type, instead of the table's; None leaves those.
        seeds: instead of the table's.
        plugins: where components are registered; None: those that are installed, as they are for the runs.

    Raises:
        RecipeError: with every problem of the table and of every cell.
    """
    name, tables = read_source(source)
    for override in filter(_is_of_comparison, overrides):
        apply_override(tables, override)
    options, variants = _variants(name, tables.pop(TABLE, {}), mixers, seeds)
    others = [override for override in overrides if not _is_of_comparison(override)]
    plugins = plugins or Plugins.discover()
    if mixers is not None or _varies_mixer_type(options.vary):
        variants = _with_shared_options(variants, tables, others, plugins)
    found: dict[str, CheckedRecipe] = {}
    problems: dict[str, Sequence[Problem]] = {}
    for cell, changes in variants.items():
        try:
            texts = [*others, *(f"{path}={to_inline(value)}" for path, value in changes)]
            found[cell] = check_recipe(tables, texts, plugins)
            if not found[cell].recipe.recipe.evaluate.benchmarks:
                problems[cell] = [
                    Problem("evaluate.benchmarks", "is empty; a comparison needs questions to compare by", code="empty")
                ]
        except RecipeError as error:
            problems[cell] = error.problems
    if problems:
        raise RecipeError(name, _merged(problems, len(variants)))
    cells = tuple(Cell(cell, variants[cell], checked, _costs(checked)) for cell, checked in found.items())
    recipe, plan = cells[0].checked.recipe, cells[0].checked.plan
    folder = options.name or f"{recipe.recipe.run.name}-{TABLE}"
    return Comparison(folder, name, options, cells, _cache_bytes(recipe.recipe.run.dtype, plan.sites))


def _with_shared_options(
    variants: Mapping[str, Changes], tables: Table, overrides: Sequence[str], plugins: Plugins
) -> dict[str, Changes]:
    """The cells of varied types of mixers; each keeps the options of the recipe's mixer that its own has too."""
    base = copy.deepcopy(tables)
    try:
        for override in overrides:
            apply_override(base, override)
        mixer = base["student"]["mixer"]
    except (RecipeError, KeyError, TypeError):
        return dict(variants)  # the check of the cells says what is wrong
    if not isinstance(mixer, Mapping):
        return dict(variants)
    return {cell: carry_over(changes, mixer, plugins) for cell, changes in variants.items()}


def _varies_mixer_type(vary: Mapping[str, Any]) -> bool:
    """Whether types of mixers are alternatives by themselves, not in tables that say all of a mixer."""
    student = vary.get("student")
    mixer = student.get("mixer") if isinstance(student, Mapping) else None
    return isinstance(mixer, Mapping) and "type" in mixer


def _is_of_comparison(override: str) -> bool:
    return override.partition("=")[0].strip().split(".")[0] == TABLE


def _variants(
    name: str, table: Any, mixers: Sequence[str] | None, seeds: int | None
) -> tuple[CompareTable, dict[str, Changes]]:
    """The checked options and every cell's changes by name.

    Raises:
        RecipeError: with every problem of the table.
    """
    if not isinstance(table, dict):
        raise RecipeError(name, [Problem(TABLE, f"expected a table; got {table!r}", table, "table_type")])
    try:
        options = CompareTable.model_validate(table | ({} if seeds is None else {"seeds": seeds}))
    except ValidationError as error:
        raise RecipeError(name, describe_validation(error, CompareTable, TABLE)) from None
    problems: list[Problem] = []
    alternatives = dict(_alternatives(options.vary, problems))
    if mixers is not None:
        others = {path: values for path, values in alternatives.items() if path not in ("student.mixer", MIXER_TYPE)}
        alternatives = {MIXER_TYPE: list(mixers), **others}
        options = options.model_copy(update={"cells": _without_mixers(options.cells)})
    for path, values in alternatives.items():
        if not values:
            problems.append(
                Problem(f"{TABLE}.vary.{path}", "is empty; expected at least one alternative", code="empty")
            )
    own = {f"{TABLE}.cells.{cell.name}": _changes("", cell.set) for cell in options.cells}
    problems += [
        Problem(f"{where}.set.{path}", f"is varied by {TABLE}.vary too; expected one place", code="varied_twice")
        for where, changes in own.items()
        for path, _ in changes
        if any(f"{path}.".startswith(f"{varied}.") or f"{varied}.".startswith(f"{path}.") for varied in alternatives)
    ]
    asked = {f"{TABLE}.vary.{path}": path for path in alternatives}
    asked |= {f"{where}.set.{path}": path for where, changes in own.items() for path, _ in changes}
    problems += [
        Problem(where, f"all cells share `{top}`: {YARDSTICK[top]}", code="shared_by_cells")
        for where, path in asked.items()
        if (top := path.split(".")[0]) in YARDSTICK
    ]
    problems += [
        Problem(where, problem, value, "no_toml")
        for where, value in _values(alternatives, own)
        if (problem := _unsayable(value))
    ]
    if not alternatives and not options.cells:
        text = f"nothing is varied; give --mixer A,B with two mixers or a [{TABLE}] table with `vary` or `cells`"
        problems.append(Problem(TABLE, text, code="empty"))
    if problems:
        raise RecipeError(name, problems)
    cells = list(_combinations(alternatives, options.cells))
    names = [cell for cell, _ in cells]
    repeated = sorted({cell for cell in names if names.count(cell) > 1})
    if repeated:
        text = f"two cells have the same name: {', '.join(repeated)}"
        raise RecipeError(name, [Problem(TABLE, text, repeated, "repeated_name")])
    return options, dict(cells)


def _without_mixers(cells: Sequence[CellTable]) -> tuple[CellTable, ...]:
    """The cells with mixers of their own left out, so that the command line's take their place.

    Of cells that then are alike the first stays; where all are, none, as they said nothing else.
    """
    distinct: dict[str, CellTable] = {}
    for cell in cells:
        changes = copy.deepcopy(cell.set)
        student = changes.get("student")
        mixer = student.get("mixer") if isinstance(student, dict) else None
        if isinstance(student, dict) and isinstance(mixer, dict) and "type" in mixer:
            del student["mixer"]
            if not student:
                del changes["student"]
        distinct.setdefault(to_inline(changes), cell.model_copy(update={"set": changes}))
    return tuple(distinct.values()) if len(distinct) > 1 else ()


def _alternatives(table: Mapping[str, Any], problems: list[Problem], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """(key path, alternatives) of nested tables whose leaves are lists."""
    for key, value in table.items():
        below = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _alternatives(value, problems, below)
        elif isinstance(value, list):
            yield below, value
        else:
            text = f"expected a list of alternatives; got {value!r}"
            problems.append(Problem(f"{TABLE}.vary.{below}", text, value, "list_type"))


def _values(alternatives: Mapping[str, list[Any]], own: Mapping[str, Changes]) -> Iterator[tuple[str, Any]]:
    """Every value with its place in the table."""
    for path, values in alternatives.items():
        yield from ((f"{TABLE}.vary.{path}", value) for value in values)
    for where, changes in own.items():
        yield from ((f"{where}.set.{path}", value) for path, value in changes)


def _unsayable(value: Any) -> str:
    """Why a recipe cannot hold the value, such as a date or an infinite number; "" where it can."""
    try:
        to_inline(value)
    except TypeError as error:
        return str(error)
    return ""


def _changes(path: str, value: Any) -> Changes:
    """A value laid over the recipe key by key, as `extends` would; a component's type comes before its options."""
    if not isinstance(value, dict) or not value:
        return ((path, value),) if path else ()
    keys = sorted(value, key=lambda key: key != "type")
    return tuple(itertools.chain(*(_changes(f"{path}.{key}" if path else key, value[key]) for key in keys)))


def _combinations(alternatives: Mapping[str, list[Any]], cells: Sequence[CellTable]) -> Iterator[tuple[str, Changes]]:
    """Every combination with its name, made of what differs."""
    axes = [[(_label(path, value), _changes(path, value)) for value in values] for path, values in alternatives.items()]
    if cells:
        axes.append([(cell.name, _changes("", cell.set)) for cell in cells])
    speaks = [len(axis) > 1 for axis in axes]
    for choice in itertools.product(*axes):
        named = [label for (label, _), says in zip(choice, speaks, strict=True) if says or not any(speaks)]
        changes = itertools.chain(*(changes for _, changes in choice))
        # A type that changes drops the options that were set before it.
        yield "-".join(named), tuple(sorted(changes, key=lambda change: not change[0].endswith(".type")))


def _label(path: str, value: Any) -> str:
    """A name for one alternative: "gla" of a type, "every-keep-4-last" of a component, "lr-0.001" of a number.

    It depends on the value alone, so that the runs of a cell are found again when others come beside it.
    """
    key = path.rpartition(".")[2]
    if isinstance(value, dict):
        head = str(value.get("type", key))
        options = {name: item for name, item in value.items() if name != "type"}
        words = [head, *(item if isinstance(item, str) else f"{name}-{_shown(item)}" for name, item in options.items())]
    else:
        words = [_shown(value)] if key == "type" else [key, _shown(value)]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words)).strip("-._") or "cell"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else to_inline(value)


def _merged(problems: Mapping[str, Sequence[Problem]], num_cells: int) -> list[Problem]:
    """What is wrong with all cells once, the rest with the name of its cell."""
    by_kind: dict[tuple[str, str, str], dict[str, Problem]] = {}
    for cell, found in problems.items():
        for problem in found:
            # A key that does not exist is one mistake, whatever values it was to have.
            text = "" if problem.code == "unknown_key" else problem.text
            by_kind.setdefault((problem.path, problem.code, text), {})[cell] = problem
    everywhere = [next(iter(of.values())) for of in by_kind.values() if len(of) == num_cells]
    of_some = (of for of in by_kind.values() if len(of) < num_cells)
    return everywhere + [replace(problem, scope=f"cell '{cell}'") for of in of_some for cell, problem in of.items()]


def _costs(checked: CheckedRecipe) -> Costs:
    plan = checked.plan
    mixers = plan.mixers_by_site()
    trained = {(site, name) for stage in plan.stages for site, names in stage.trained.items() for name in names}
    kept = [site for site in plan.sites if site.index not in plan.linear]
    return Costs(
        parameters_added=sum(
            size
            for site in plan.linear
            for name, size in mixers[site].sizes.items()
            if NEW_ROLE in mixers[site].roles[name]
        ),
        parameters_trained=sum(mixers[site].sizes[name] for site, name in trained),
        state_bytes=plan.state_bytes,
        cache_bytes_per_token=_cache_bytes(checked.recipe.recipe.run.dtype, kept),
    )


def _cache_bytes(dtype: str, sites: Sequence[Any]) -> int:
    itemsize = {"float32": 4, "bfloat16": 2}[dtype]
    return sum(itemsize * site.num_key_value_heads * (site.key_dim + site.value_dim) for site in sites)
