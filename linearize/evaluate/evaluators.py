"""Asks the evaluators of a recipe. Each one's results are a file, and so are the parts that it asks to be stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.evaluate.stored_work import asked_of, same_work
from linearize.files.json_file import write_sealed
from linearize.files.names import file_name
from linearize.protocols import AnsweredTask, Evaluator, Section

if TYPE_CHECKING:
    from linearize.plugin.components import ResolvedComponent
    from linearize.protocols import TeacherAdapter


@dataclass(slots=True)
class StoringStudent:
    """An ``EvaluatedStudent`` for one evaluator.

    Attributes:
        name: the evaluator's, in the results.
        folder: of the evaluators' files. identity: what the work depends on.
        report: called with (name, done, in all); None where nobody watches.
    """

    model: Any
    adapter: TeacherAdapter
    tasks: Sequence[AnsweredTask]
    batch_size: int
    max_new_tokens: int
    name: str
    folder: Path
    identity: Mapping[str, Any]
    report: Callable[[str, int, int], None] | None

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """See :class:`linearize.protocols.EvaluatedStudent`."""
        path = self.folder / f"{file_name(self.name, name)}.json"
        if (stored := same_work(path, self.identity)) is not None:
            return stored["made"]
        made = _as_json(make())
        write_sealed(path, {**self.identity, "made": made})
        return made

    def progress(self, done: int, total: int) -> None:
        """See :class:`linearize.protocols.EvaluatedStudent`."""
        if self.report is not None:
            self.report(self.name, done, total)


def ask_evaluators(
    evaluators: Mapping[str, ResolvedComponent],
    model: Any,
    adapter: TeacherAdapter,
    tasks: Sequence[AnsweredTask],
    *,
    batch_size: int,
    max_new_tokens: int,
    folder: Path,
    key: str,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, dict[str, Any]]:
    """What each evaluator says of a student, under the name that the results give it.

    Returns:
        <name>: results, and section, the fields of a ``Section`` or None; without those that found nothing to measure.

    Raises:
        PluginFault: an evaluator fails, or gives something else than its protocol says; names it and its plug-in.
    """
    questions = {task.name: asked_of(task.questions) for task in tasks}
    asked = {"key": key, "max_new_tokens": max_new_tokens, "questions": questions}
    found = {}
    for name, component in evaluators.items():
        identity = {**asked, "evaluator": component.table()}
        path = folder / f"{file_name(name)}.json"
        if (stored := same_work(path, identity)) is None:
            evaluator: Evaluator = component.build()
            student = StoringStudent(
                model, adapter, tasks, batch_size, max_new_tokens, name, folder, identity, progress
            )  # fmt: skip
            with component.guarded(may_refuse=False):
                stored = _look(evaluator, student)
            write_sealed(path, {**identity, **stored})
        if stored["results"] is not None:
            found[name] = {part: stored[part] for part in ("results", "section")}
    return found


def _look(evaluator: Evaluator, student: StoringStudent) -> dict[str, Any]:
    results: Any = evaluator.evaluate(student)
    if results is None:
        return {"results": None, "section": None}
    if not isinstance(results, Mapping):
        raise TypeError(f"evaluate() has to return a mapping, or None; got {results!r}")
    results = _as_json(results)
    section: Any = evaluator.section(results)
    if not (section is None or isinstance(section, Section)):
        raise TypeError(f"section() has to return a Section of linearize.protocols, or None; got {section!r}")
    return {"results": results, "section": None if section is None else _as_json(asdict(section))}


def _as_json(value: Any) -> Any:
    """The value as a file gives it back, so that a resumed evaluation sees what an unbroken one does."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"an evaluator's results have to be JSON values: {error}") from error
