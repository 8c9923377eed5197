"""The models that a bench measures, from what was typed: all of it is understood before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearize.errors import LinearizeError, RunError, did_you_mean, did_you_mean_path
from linearize.files.json_file import read_sealed
from linearize.files.names import file_sha256
from linearize.files.run_folder import COMPARISON
from linearize.inference.targets import CONFIG, StudentTarget, find_student, resolve_teacher
from linearize.plugin.components import ResolvedComponent
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import TeacherSpec

TEACHER, STUDENT = "teacher", "student"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be measured.

    Attributes:
        name: in tables and charts.
        what: what it is, in a few words.
        teacher: name of the subject that it is compared with; "" for a teacher, and where there is none.
        identity: what it is made of, as JSON values; a bench whose subjects have others is another bench.
        load: the model, from its dtype and device.
    """

    name: str
    what: str
    teacher: str
    identity: Mapping[str, Any]
    load: Callable[[Any, Any], Any]


def find_subjects(targets: Sequence[str], plugins: Plugins) -> list[Subject]:
    """The models of runs, comparisons, students' folders and teachers as ``type[:checkpoint]``, teachers first.

    Raises:
        LinearizeError: a target is none of these, or its files or options are wrong; tells of all that are.
    """
    teachers: dict[str, ResolvedComponent] = {}
    students: list[tuple[StudentTarget, str]] = []
    problems: list[LinearizeError] = []
    for target in dict.fromkeys(run for typed in targets for run in _runs_of(typed)):
        try:
            teacher, student = _understand(target, plugins)
            key = str(teacher.table()) if teacher is not None else ""
            if teacher is not None:
                _try_configuration(teacher)
                teachers.setdefault(key, teacher)
            if student is not None and all(student.folder != other.folder for other, _ in students):
                students.append((student, key))
        except (LinearizeError, ValueError) as error:
            problems.append(error if isinstance(error, LinearizeError) else RunError(f"{target}: {error}"))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RunError("\n".join(str(problem) for problem in problems))
    return _named(teachers, students, plugins)


def _runs_of(target: str) -> list[str]:
    """A run of each cell where the target is a comparison, whose seeds have one speed; the target itself otherwise."""
    folder = Path(target).expanduser()
    if not (folder / COMPARISON).is_file():
        return [target]
    runs: dict[str, Path] = {}
    for run in sorted(folder.glob("cells/*/seed-*")):
        if read_sealed(run / "done.json") is not None:
            runs.setdefault(run.parent.name, run)
    return [str(run) for run in runs.values()] or [target]


def _understand(target: str, plugins: Plugins) -> tuple[ResolvedComponent | None, StudentTarget | None]:
    folder = Path(target).expanduser()
    is_ours = any((folder / name).is_file() for name in ("recipe.toml", CONFIG, COMPARISON))
    kind, _, checkpoint = target.partition(":")
    types = [spec.name for spec in plugins.registry.all(TeacherSpec)]
    if kind in types and not is_ours:
        options = {"checkpoint": checkpoint} if checkpoint else {}
        return resolve_teacher(kind, options, plugins, f"teacher '{target}'"), None
    if not folder.is_dir():
        near = did_you_mean(kind, types) or did_you_mean_path(folder)
        raise RunError(
            f"'{target}' is neither a folder nor a teacher.{near} Expected the folder of a run or of a student, or a "
            f"teacher as TYPE or TYPE:CHECKPOINT; types: {', '.join(types)}"
        )
    student = find_student(folder)
    if not student.model_type.startswith("linearize_") and student.published_format(plugins) is None:
        raise RunError(
            f"{folder} holds a model of type '{student.model_type}', which is no student; write a teacher as "
            f"TYPE:{target}, with one of the types {', '.join(types)}"
        )
    return (None if student.folder == folder else student.teacher(plugins)), student


def _try_configuration(teacher: ResolvedComponent) -> None:
    """Lets a checkpoint that is not there, or cannot be converted, be told now."""
    with teacher.guarded():
        teacher.build().sites()


def _named(
    teachers: Mapping[str, ResolvedComponent], students: Sequence[tuple[StudentTarget, str]], plugins: Plugins
) -> list[Subject]:
    names: dict[str, str] = {}
    subjects: list[Subject] = []
    for key, teacher in teachers.items():
        title = teacher_title(teacher)
        names[key] = unused_name(TEACHER if len(teachers) == 1 else title, subjects)
        subjects.append(Subject(names[key], title, "", {TEACHER: teacher.table()}, _teacher_loader(teacher)))
    only = next(iter(names.values())) if len(names) == 1 else ""
    for student, key in students:
        name = STUDENT if len(students) == 1 else _folder_name(student.folder)
        subjects.append(
            Subject(
                unused_name(name, subjects), str(student.folder), names.get(key, only),
                {STUDENT: file_sha256(student.folder / CONFIG)}, _student_loader(student, plugins),
            )
        )  # fmt: skip
    return subjects


def teacher_title(teacher: ResolvedComponent) -> str:
    """ "hovle (embedded)"."""
    table = teacher.table()
    checkpoint = f" ({table['checkpoint']})" if table.get("checkpoint") else ""
    return f"{table['type']}{checkpoint}"


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    folder = folder.parent if folder.name == STUDENT else folder
    return folder.parent.name if folder.parent.parent.name == "cells" else folder.name


def unused_name(name: str, subjects: Sequence[Subject]) -> str:
    """The name, or the first of NAME-2, NAME-3, ... that no subject has."""
    taken, number, found = {subject.name for subject in subjects}, 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def _teacher_loader(teacher: ResolvedComponent) -> Callable[[Any, Any], Any]:
    def load(dtype: Any, device: Any) -> Any:
        from linearize.files.aligned import align_tensors

        model = teacher.build().load(dtype=dtype, device=device)
        align_tensors(model)
        return model.eval()

    return load


def _student_loader(student: StudentTarget, plugins: Plugins) -> Callable[[Any, Any], Any]:
    return lambda dtype, device: student.load(dtype=dtype, device=device, plugins=plugins)
