"""The look at a student whose mixers have branches, as an evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from linearize.evaluate.answers import generate_answers
from linearize.evaluate.branches.config import BranchesConfig
from linearize.evaluate.branches.measures import BranchMeasures, describe_branches, measure_branches
from linearize.evaluate.branches.section import branch_section
from linearize.protocols import AnsweredTask, EvaluatedStudent, Section
from linearize.student.branches import branch_names, without_branch


class Branches:
    """Measures each branch at its sites, and has the student answer without it."""

    def __init__(self, config: BranchesConfig) -> None:
        self.config = config

    def evaluate(self, student: EvaluatedStudent) -> dict[str, Any] | None:
        """See ``describe_branches``; None for a student without branches."""
        names = branch_names(student.model)
        if not names:
            return None
        tasks = [_first(task, self.config.questions) for task in student.tasks]
        questions = [question for task in tasks for question in task.questions]
        progress = _Progress(student, (1 + len(names)) * len(questions))
        measure = partial(
            measure_branches, student.model, student.adapter, questions, batch_size=student.batch_size,
            progress=progress.add,
        )  # fmt: skip
        measures = BranchMeasures.of(student.once("measures", lambda: asdict(measure())))
        progress.reach(len(questions))
        right: dict[str | None, float] = {None: _share([answer.correct for task in tasks for answer in task.student])}
        for name in names:
            correct: list[bool] = []
            for task in tasks:
                ask = partial(_ask_without, name, student, task, progress)
                correct += student.once(f"{task.name} without {name}", ask)
                progress.reach(len(task.questions))
            right[name] = _share(correct)
        return describe_branches(measures, len(questions), right)

    def section(self, results: Mapping[str, Any]) -> Section:
        """A row for each branch, and a warning for each that the student would hardly miss."""
        return branch_section(results)


class _Progress:
    """Counts questions, those of pieces too that an earlier process has done."""

    def __init__(self, student: EvaluatedStudent, total: int) -> None:
        self.student, self.total = student, total
        self.done = self.of_whole_pieces = 0

    def add(self, count: int) -> None:
        self.done += count
        self.student.progress(self.done, self.total)

    def reach(self, size: int) -> None:
        """A piece of that size is done, whoever did it."""
        self.of_whole_pieces += size
        if self.done < self.of_whole_pieces:
            self.add(self.of_whole_pieces - self.done)


def _first(task: AnsweredTask, count: int) -> AnsweredTask:
    questions = [task.questions[index] for index in range(min(count, len(task.questions)))]
    return replace(task, questions=questions, teacher=task.teacher[:count], student=task.student[:count])


def _ask_without(name: str, student: EvaluatedStudent, task: AnsweredTask, progress: _Progress) -> list[bool]:
    """Which questions the student answers right without a branch."""
    with without_branch(student.model, name):
        texts = generate_answers(
            student.model, student.adapter, task.questions, batch_size=student.batch_size,
            max_new_tokens=student.max_new_tokens, progress=progress.add,
        )  # fmt: skip
    return [bool(task.benchmark.is_correct(*pair)) for pair in zip(task.questions, texts, strict=True)]


def _share(correct: Sequence[bool]) -> float:
    return sum(correct) / len(correct)
