"""From a recipe file to a checked, fully resolved recipe: every problem found before anything is run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from linearize.errors import LinearizeError, Problem, RecipeError
from linearize.plugin.components import ResolvedComponent, read_options
from linearize.plugin.discovery import Plugins
from linearize.plugin.problems import describe_validation, named_path
from linearize.plugin.specs import (
    BenchmarkSpec,
    DataSpec,
    EvaluatorSpec,
    LayoutSpec,
    MixerSpec,
    ObjectiveSpec,
    ScheduleSpec,
    SeederSpec,
    Spec,
    TeacherSpec,
)
from linearize.plugin.tables import Table, merge, merge_named
from linearize.recipe.model import Component, EvaluateTable, Recipe, SiteMixerTable, Stage, StudentTable
from linearize.recipe.toml import apply_override, read_tables, to_inline

MIXER = "student.mixer"
COMPONENT_TABLES: Mapping[str, type[Spec]] = {
    "teacher": TeacherSpec,
    MIXER: MixerSpec,
    "student.layout": LayoutSpec,
    "student.seeder": SeederSpec,
    "data": DataSpec,
    "schedule": ScheduleSpec,
}


BRANCH_QUESTIONS = "branch_questions"


def site_mixer_path(number: int) -> str:
    """Where the mixer of an entry of `student.sites` stands."""
    return f"student.sites.{number}.mixer"


@dataclass(slots=True)
class Draft:
    """What is known of a recipe before its problems are raised; parts that are wrong are missing.

    Attributes:
        spared: components with wrong options, as they are without these; to find further problems by.
    """

    name: str
    tables: Table
    plugins: Plugins
    problems: list[Problem] = field(default_factory=list)
    components: dict[str, ResolvedComponent] = field(default_factory=dict)
    spared: dict[str, ResolvedComponent] = field(default_factory=dict)
    stages: dict[int, Stage] = field(default_factory=dict)
    site_mixers: dict[int, SiteMixerTable] = field(default_factory=dict)
    recipe: Recipe | None = None

    def tell(self, path: str, text: str, found: Any = None, code: str = "invalid") -> None:
        """Adds a problem with what is at ``path``."""
        self.problems.append(Problem(named_path(path, self.tables), text, found, code))

    def tell_error(self, path: str, error: LinearizeError | ValueError) -> None:
        """Adds what the component at ``path`` refuses; an error that names an option is a problem of that option."""
        if isinstance(error, LinearizeError):
            problem = error.problem(named_path(path, self.tables))
            self.problems.append(replace(problem, text=problem.text + self._beside_the_recipe(problem.found)))
        else:
            self.tell(path, str(error), code="value_error")

    def _beside_the_recipe(self, found: Any) -> str:
        """A hint where a relative path leads nowhere from the current directory, and somewhere from the recipe's."""
        beside = Path(self.name).parent / found if isinstance(found, str) and found else None
        if beside is None or Path(found).is_absolute() or Path(found).exists() or not beside.exists():
            return ""
        return f" There is '{beside}'; paths in a recipe start at the current directory, {Path.cwd()}"

    @contextlib.contextmanager
    def telling(self, path: str) -> Iterator[None]:
        """Makes what a component refuses, and its faults where one is at ``path``, a problem with what is there."""
        component = self.components.get(path)
        try:
            with component.guarded() if component is not None else contextlib.nullcontext():
                yield
        except (LinearizeError, ValueError) as error:
            self.tell_error(path, error)

    def raise_problems(self) -> None:
        """Raises RecipeError when there is any problem."""
        if self.problems:
            raise RecipeError(self.name, self.problems)


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe without problems.

    Attributes:
        components: by TOML path, such as "student.mixer" or "stages.0.objective".
        plugins: where they are registered; what is made of the recipe later is looked up there.
    """

    name: str
    recipe: Recipe
    components: Mapping[str, ResolvedComponent]
    plugins: Plugins = field(compare=False, repr=False)

    def tables(self) -> Table:
        """The resolved recipe as plain tables: every default written out, `schedule` expanded into `stages`."""
        tables: Table = self.recipe.model_dump(mode="json", exclude_none=True, exclude={"schedule"})
        if not self.recipe.student.sites:
            del tables["student"]["sites"]  # so that a recipe without them is the same to releases before they existed
        for path, component in self.components.items():
            if path != "schedule":
                _put(tables, path, component.table())
        return tables

    def completed(self, older: Table) -> Table:
        """Tables that an older release resolved, with the defaults of keys that it did not have."""
        try:
            return load_recipe(older, [], self.plugins).tables()
        except RecipeError:
            return older

    def to_toml(self) -> str:
        """The resolved recipe as TOML text; reading it back gives the same recipe."""
        return tomli_w.dumps(self.tables())


def draft_recipe(source: Path | str | Mapping[str, Any], overrides: Sequence[str], plugins: Plugins) -> Draft:
    """Reads a recipe and checks all that can be known without a teacher; problems are collected, not raised.

    Args:
        source: a recipe file, or its tables.
        overrides: "path.to.key=value" items, applied in order; those of `schedule` before its stages are made.

    Raises:
        RecipeError: the file cannot be read.
    """
    name, tables = read_source(source)
    draft = Draft(name, tables, plugins)
    if tables.pop("compare", None) is not None:
        draft.tell(
            "compare", "describes many runs; `linearize compare` runs them, and this takes a single one", code="one_run"
        )
    _override(draft, filter(_is_of_schedule, overrides))
    _expand_schedule(draft)
    _override(draft, itertools.filterfalse(_is_of_schedule, overrides))
    _read_branch_questions(draft)
    _check_core_tables(draft)
    for path, table, kind in _component_tables(draft.tables):
        resolved = _resolve_component(draft, path, table, kind)
        if resolved is not None:
            draft.components[path] = resolved
    for path, table in _site_mixer_tables(draft):
        resolved = _resolve_component(draft, path, table, MixerSpec)
        if resolved is not None:
            draft.components[path] = resolved
    return draft


def read_source(source: Path | str | Mapping[str, Any]) -> tuple[str, Table]:
    """What errors call a recipe, and its tables, which are the caller's to change.

    Raises:
        RecipeError: the file cannot be read.
    """
    if isinstance(source, str | Path):
        return str(source), read_tables(Path(source))
    return "recipe", json.loads(json.dumps(source))


def finish_draft(draft: Draft) -> LoadedRecipe:
    """The recipe of a draft without problems.

    Raises:
        RecipeError: there are problems; lists them all.
    """
    draft.raise_problems()
    assert draft.recipe is not None
    return LoadedRecipe(draft.name, draft.recipe, draft.components, draft.plugins)


def load_recipe(source: Path | str | Mapping[str, Any], overrides: Sequence[str], plugins: Plugins) -> LoadedRecipe:
    """A recipe whose tables and components are all valid; what needs the teacher is checked by ``linearize.plan.plan``.

    Raises:
        RecipeError: with every problem by TOML path.
    """
    return finish_draft(draft_recipe(source, overrides, plugins))


def _override(draft: Draft, overrides: Iterable[str]) -> None:
    for override in overrides:
        try:
            apply_override(draft.tables, override)
        except RecipeError as error:
            draft.problems.extend(error.problems)


def _is_of_schedule(override: str) -> bool:
    return override.partition("=")[0].strip().split(".")[0] == "schedule"


def _read_branch_questions(draft: Draft) -> None:
    """Takes `evaluate.branch_questions`, the key of recipes from before evaluators, for what it stands for."""
    evaluate = draft.tables.get("evaluate")
    if not isinstance(evaluate, dict) or BRANCH_QUESTIONS not in evaluate:
        return
    questions, path = evaluate.pop(BRANCH_QUESTIONS), f"evaluate.{BRANCH_QUESTIONS}"
    if isinstance(questions, bool) or not isinstance(questions, int) or questions < 0:
        draft.tell(path, f"expected a number of questions, 0 or more; got {questions!r}", questions, "int_type")
        return
    meant = [{"type": "branches", "questions": questions}] if questions else []
    if "evaluators" in evaluate:
        text = f"is the older way to write evaluators = {to_inline(meant)}; got evaluate.evaluators besides. Keep one"
        draft.tell(path, text, questions, "twice")
    else:
        evaluate["evaluators"] = meant


def _expand_schedule(draft: Draft) -> None:
    table = draft.tables.get("schedule")
    if not isinstance(table, dict):
        return
    resolved = _resolve_component(draft, "schedule", table, ScheduleSpec)
    if resolved is None:
        # Its problem is in the draft; the stages that it would have made are not missing on top of that.
        draft.tables.setdefault("stages", [])
        return
    draft.components["schedule"] = resolved
    made: list[Table] | None = None
    with draft.telling("schedule"):
        made = [{**stage, "name": stage["name"]} for stage in resolved.build().stages()]
    own = draft.tables.get("stages", [])
    if made is None:
        del draft.components["schedule"]
        draft.tables.setdefault("stages", [])
    elif isinstance(own, list) and all(isinstance(stage, dict) and "name" in stage for stage in own):
        draft.tables["stages"] = merge_named(made, own)
    else:
        text = "expected a list of tables with a `name` each, to be laid over the schedule's stages"
        draft.tell("stages", text, own, "list_type")


def _check_core_tables(draft: Draft) -> None:
    try:
        draft.recipe = Recipe.model_validate(draft.tables)
    except ValidationError as error:
        failed_schedule = "schedule" in draft.tables and "schedule" not in draft.components
        for problem in describe_validation(error, Recipe, tables=draft.tables):
            if not (failed_schedule and problem.path.split(".")[0] == "stages"):
                draft.problems.append(problem)
    stages = draft.tables.get("stages")
    for number, table in enumerate(stages if isinstance(stages, list) else []):
        try:
            draft.stages[number] = Stage.model_validate(table)
        except ValidationError:
            continue  # reported by the recipe's own validation above
    student = draft.tables.get("student")
    entries = student.get("sites") if isinstance(student, dict) else None
    for number, table in enumerate(entries if isinstance(entries, list) else []):
        with contextlib.suppress(ValidationError):  # reported as well
            draft.site_mixers[number] = SiteMixerTable.model_validate(table)


def _component_tables(tables: Table) -> Iterator[tuple[str, Table, type[Spec]]]:
    student = tables.get("student", {})
    if isinstance(student, dict):
        tables = {**tables, "student": StudentTable.with_default_components(student)}
    for path, kind in COMPONENT_TABLES.items():
        table: Any = tables
        for key in path.split("."):
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and path != "schedule":
            yield path, table, kind
    yield from _listed_components(tables.get("stages"), "stages", "objective", ObjectiveSpec)
    evaluate = tables.get("evaluate", {})
    for key, listed in (("benchmarks", BenchmarkSpec), ("evaluators", EvaluatorSpec)):
        items = evaluate.get(key, EvaluateTable.model_fields[key].default) if isinstance(evaluate, dict) else None
        for number, table in enumerate(items if isinstance(items, Sequence) else ()):
            if isinstance(table, dict):
                yield f"evaluate.{key}.{number}", table, listed


def _site_mixer_tables(draft: Draft) -> Iterator[tuple[str, Table]]:
    """Path and whole table of the mixers in `student.sites`: each laid over student.mixer, less what is wrong there."""
    base = draft.components.get(MIXER) or draft.spared.get(MIXER)
    for number, entry in draft.site_mixers.items():
        table = merge({"mixer": base.table() if base else {}}, {"mixer": entry.mixer})["mixer"]
        if base is not None or "type" in table:
            yield site_mixer_path(number), table


def _listed_components(items: Any, path: str, key: str, kind: type[Spec]) -> Iterator[tuple[str, Table, type[Spec]]]:
    for number, item in enumerate(items if isinstance(items, list) else []):
        table = item.get(key) if isinstance(item, dict) else None
        if isinstance(table, dict):
            yield f"{path}.{number}.{key}", table, kind


def _resolve_component(draft: Draft, path: str, table: Table, kind: type[Spec]) -> ResolvedComponent | None:
    plugins = draft.plugins
    if not isinstance(table.get("type"), str):
        if kind is ScheduleSpec:
            draft.tell(f"{path}.type", "is required", code="missing")
        return None  # for other tables the recipe's own validation has said it
    try:
        component = Component.model_validate(table)
        spec = plugins.registry.get(kind, component.type, plugins.failures_hint())
        model = spec.config_class()
    except LinearizeError as error:
        draft.tell_error(f"{path}.type", error)
        return None
    resolved = functools.partial(ResolvedComponent, spec, plugin=plugins.registry.owner(spec))
    try:
        return resolved(read_options(model, component.options(), plugins))
    except LinearizeError as error:
        draft.tell_error(path, error)
        return None
    except ValidationError as error:
        draft.problems.extend(describe_validation(error, model, path, draft.tables, also=("type",)))
        wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
        right = {key: value for key, value in component.options().items() if key not in wrong}
        with contextlib.suppress(ValidationError, LinearizeError):
            draft.spared[path] = resolved(read_options(model, right, plugins))
        return None


def _put(tables: Table, path: str, value: Table) -> None:
    *parents, last = path.split(".")
    target: Any = tables
    for key in parents:
        target = target[int(key)] if isinstance(target, list) else target[key]
    if isinstance(target, list):
        target[int(last)] = value
    else:
        target[last] = value
