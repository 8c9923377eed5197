"""Asks teacher and student the same questions and sums up. Every finished task is a file, so evaluation resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.errors import DataError
from linearize.evaluate.agreement import Agreement, measure_agreement
from linearize.evaluate.answers import generate_answers
from linearize.evaluate.branch_analysis import BranchMeasures, SiteSums, describe_branches, measure_branches
from linearize.evaluate.examples import keep_examples
from linearize.evaluate.scores import TaskScore, average_retention
from linearize.files.json_file import read_sealed, write_json, write_sealed
from linearize.files.names import file_name
from linearize.student.branches import branch_names, without_branch
from linearize.student.convert import teacher_route

if TYPE_CHECKING:
    from linearize.protocols import Benchmark, TeacherAdapter
    from linearize.protocols.conversation import Conversation

Progress = Callable[[str, int, int], None]
"""Called with (what is running, questions done, questions in all); a question counts once per pass over it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of one task, or of one position of its dial.

    Attributes:
        name: the task's name in the results.
        difficulty: position of the dial; None for the task as it stands.
    """

    benchmark: Benchmark
    benchmark_name: str
    task: str
    name: str
    difficulty: int | None
    questions: Sequence[Conversation]

    def first(self, count: int) -> Asked:
        """The same with its first ``count`` questions alone."""
        return replace(self, questions=[self.questions[index] for index in range(min(count, len(self.questions)))])

    def file(self, folder: Path, what: str) -> Path:
        """Where the results of ``what`` ("teacher", "student" or "agreement") are kept."""
        return folder / "answers" / f"{file_name(self.benchmark_name, self.task, self.difficulty, what)}.json"


@dataclass(frozen=True, slots=True)
class SharedAnswers:
    """The teacher's answers, kept for all runs that ask the same teacher the same questions in the same way.

    Attributes:
        key: names the teacher's weights and how it is asked; answers under another key are not taken.
    """

    folder: Path
    key: str


def evaluate(
    model: Any,
    adapter: TeacherAdapter,
    benchmarks: Mapping[str, Benchmark],
    *,
    batch_size: int,
    max_new_tokens: int,
    folder: Path,
    progress: Progress | None = None,
    dial_questions: int = 0,
    num_examples: int = 3,
    branch_questions: int = 0,
    key: str = "",
    shared: SharedAnswers | None = None,
) -> dict[str, Any]:
    """The scores of a converted model against its own teacher route; also written to ``folder``/summary.json.

    Args:
        benchmarks: by the name that the recipe gives them; tasks that several have in common become "benchmark/task".
        folder: holds one file per finished piece of work, every answer included; what is there is not asked again.
        dial_questions: questions per position of a difficulty dial; 0 turns no dial.
        num_examples: questions per task that are kept with image and both answers.
        branch_questions: questions per task by which the branches of a student that has some are measured.
        key: names the weights; stored work under another key, or of other questions, is done anew.
        shared: where the teacher's answers are looked for, and put, besides; None: in ``folder`` alone.

    Returns:
        tasks.<name>: teacher, student (shares of right answers), retention (None where the teacher's is 0), questions,
        teacher_interval, student_interval, retention_interval (95 %), kl, top1_agreement; average_retention and
        average_retention_interval over the tasks; kl (teacher || student, nats per answer token) and top1_agreement
        over all answer tokens; answer_tokens; dials.<name>: one row per difficulty; branches, None for a student
        without any: questions, whole (kl, top1_agreement, student: share of right answers, site_error: squared error
        over variance, mean over sites) and each.<name>: share of what the sites give, sites (the same by site), and
        without, which is like whole.

    Raises:
        DataError: there is no benchmark, or a task without questions.
    """
    asked = list_questions(benchmarks, dial_questions)
    names = branch_names(model) if branch_questions else ()
    looked_at = [item.first(branch_questions) for item in asked if item.difficulty is None] if names else []
    counter = _Counter(progress, _passes(asked) + (1 + len(names)) * sum(len(item.questions) for item in looked_at))
    work = _Work(model, adapter, batch_size, max_new_tokens, folder, key, shared, counter)
    tasks: dict[str, dict[str, Any]] = {}
    dials: dict[str, list[dict[str, Any]]] = {}
    scores: list[TaskScore] = []
    examples: list[dict[str, Any]] = []
    total = Agreement()
    for item in asked:
        teacher, student = work.answers(item, "teacher"), work.answers(item, "student")
        score = TaskScore.from_answers([it["correct"] for it in teacher], [it["correct"] for it in student])
        if item.difficulty is not None:
            dials.setdefault(item.name, []).append({"difficulty": item.difficulty, **describe(score)})
            continue
        agreement = work.agreement(item)
        total += agreement
        scores.append(score)
        tasks[item.name] = {**describe(score), "kl": agreement.kl, "top1_agreement": agreement.top1}
        examples += keep_examples(folder, item.name, item.questions, teacher, student, num_examples)
    average = average_retention(scores)
    summary = {
        "tasks": tasks,
        "average_retention": average[0] if average else None,
        "average_retention_interval": list(average[1]) if average else None,
        "kl": total.kl,
        "top1_agreement": total.top1,
        "answer_tokens": total.tokens,
        "dials": dials,
        "branches": work.branches(looked_at, names) if names else None,
    }
    write_json(folder / "examples.json", examples)
    write_sealed(folder / "summary.json", {"key": key, **summary})
    return summary


def list_questions(benchmarks: Mapping[str, Benchmark], dial_questions: int = 0) -> list[Asked]:
    """Everything that will be asked, tasks first and then their dials, easy first.

    Raises:
        DataError: there is no benchmark, or a task without questions.
    """
    if not benchmarks:
        raise DataError("an evaluation was asked for without a benchmark; name one under evaluate.benchmarks")
    owners: dict[str, int] = {}
    for benchmark in benchmarks.values():
        for task in benchmark.tasks:
            owners[task] = owners.get(task, 0) + 1
    tasks: list[Asked] = []
    dials: list[Asked] = []
    for benchmark_name, benchmark in benchmarks.items():
        for task in benchmark.tasks:
            name = task if owners[task] == 1 else f"{benchmark_name}/{task}"
            tasks.append(Asked(benchmark, benchmark_name, task, name, None, benchmark.questions(task)))
            for difficulty in benchmark.dials.get(task, ()) if dial_questions else ():
                all_questions = benchmark.questions(task, difficulty)
                questions = [all_questions[index] for index in range(min(dial_questions, len(all_questions)))]
                dials.append(Asked(benchmark, benchmark_name, task, name, difficulty, questions))
    for item in tasks + dials:
        if not len(item.questions):
            at = "" if item.difficulty is None else f" at difficulty {item.difficulty}"
            raise DataError(
                f"benchmark '{item.benchmark_name}' has no question for task '{item.task}'{at}; "
                "at least one was due: look at its options under evaluate.benchmarks"
            )
    return tasks + dials


def describe(score: TaskScore) -> dict[str, Any]:
    """The part of a task's results that comes from right and wrong answers."""
    interval = score.retention_interval()
    return {
        "teacher": score.teacher,
        "student": score.student,
        "retention": score.retention,
        "questions": score.questions,
        "teacher_interval": list(score.teacher_interval()),
        "student_interval": list(score.student_interval()),
        "retention_interval": list(interval) if interval else None,
    }


class _Counter:
    """Turns finished batches into calls of the caller's progress function."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.done = 0
        self.total = total

    def add(self, label: str, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(label, self.done, self.total)


def _passes(asked: Sequence[Asked]) -> int:
    """Questions that both models answer, and those that they are compared on besides."""
    return sum(len(item.questions) * (3 if item.difficulty is None else 2) for item in asked)


@dataclass(slots=True)
class _Work:
    """Does one piece of work, or finds it done."""

    model: Any
    adapter: TeacherAdapter
    batch_size: int
    max_new_tokens: int
    folder: Path
    key: str
    shared: SharedAnswers | None
    counter: _Counter

    def answers(self, item: Asked, role: str, without: str = "") -> list[dict[str, Any]]:
        """One {"answer", "correct"} per question of the teacher's or the student's route.

        Args:
            without: a branch that the student does without.
        """
        if without:
            role = f"{role}-without-{without}"
        label = f"{_label(item)}: {role.replace('-', ' ')} answers"
        identity = {**self._identity(item), "role": role, "max_new_tokens": self.max_new_tokens}
        places = [(item.file(self.folder, role), identity)]
        if self.shared is not None and role == "teacher":
            places.append((item.file(self.shared.folder, role), {**identity, "key": self.shared.key}))
        stored = [_same(path, due) for path, due in places]
        answers: list[dict[str, Any]] | None = next((list(one["answers"]) for one in stored if one is not None), None)
        if answers is None:
            answers = self._ask(item, role, label, without)
        else:
            self.counter.add(label, len(item.questions))
        for (path, due), one in zip(places, stored, strict=True):
            if one is None:
                write_sealed(path, {**due, "answers": answers})
        return answers

    def _ask(self, item: Asked, role: str, label: str, without: str) -> list[dict[str, Any]]:
        route: AbstractContextManager[None] = nullcontext()
        if role == "teacher":
            route = teacher_route(self.model)
        elif without:
            route = without_branch(self.model, without)
        with route:
            texts = generate_answers(
                self.model, self.adapter, item.questions, batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens, progress=lambda count: self.counter.add(label, count),
            )  # fmt: skip
        return [
            {"answer": text, "correct": bool(item.benchmark.is_correct(question, text))}
            for question, text in zip(item.questions, texts, strict=True)
        ]

    def agreement(self, item: Asked) -> Agreement:
        """KL and top-1 agreement on the right answers."""
        label = f"{_label(item)}: agreement"
        path = item.file(self.folder, "agreement")
        identity = self._identity(item)
        if (stored := _same(path, identity)) is not None:
            self.counter.add(label, len(item.questions))
            return Agreement(**stored["agreement"])
        agreement = measure_agreement(
            self.model, self.adapter, item.questions, batch_size=self.batch_size,
            progress=lambda count: self.counter.add(label, count),
        )  # fmt: skip
        write_sealed(path, {**identity, "agreement": asdict(agreement)})
        return agreement

    def branches(self, looked_at: Sequence[Asked], names: Sequence[str]) -> dict[str, Any]:
        """What each branch of the student does, by the questions in ``looked_at``."""
        questions = [question for item in looked_at for question in item.questions]
        measures = self._branch_measures(questions)
        right: dict[str | None, float] = {}
        for name in (None, *names):
            answers = [
                answer
                for item in looked_at
                # The whole student has answered all questions, and the first of them are these.
                for answer in (self._kept(item) if name is None else self.answers(item, "student", without=name))
            ]
            right[name] = sum(answer["correct"] for answer in answers) / len(answers)
        return describe_branches(measures, len(questions), right)

    def _kept(self, item: Asked) -> list[dict[str, Any]]:
        stored = read_sealed(item.file(self.folder, "student")) or {}
        return list(stored["answers"][: len(item.questions)])

    def _branch_measures(self, questions: Sequence[Conversation]) -> BranchMeasures:
        label, path = "branches", self.folder / "answers" / "branches.json"
        identity = {"key": self.key, "questions": asked_of(questions)}
        if (stored := _same(path, identity)) is not None:
            self.counter.add(label, len(questions))
            return BranchMeasures(
                sites={int(index): SiteSums(**sums) for index, sums in stored["sites"].items()},
                whole=Agreement(**stored["whole"]),
                without={name: Agreement(**agreement) for name, agreement in stored["without"].items()},
            )
        measures = measure_branches(
            self.model, self.adapter, questions, batch_size=self.batch_size,
            progress=lambda count: self.counter.add(label, count),
        )  # fmt: skip
        write_sealed(path, {**identity, **asdict(measures)})
        return measures

    def _identity(self, item: Asked) -> dict[str, Any]:
        return {
            "key": self.key, "benchmark": item.benchmark_name, "task": item.task, "difficulty": item.difficulty,
            "questions": asked_of(item.questions),
        }  # fmt: skip


def asked_of(questions: Sequence[Conversation]) -> list[list[str]]:
    """What tells whether stored results answer the same questions: id, last question and right answer of each."""
    return [[item.id, item.turns[-1].question, item.turns[-1].answer] for item in questions]


def _same(path: Path, identity: Mapping[str, Any]) -> Any:
    """The stored work when it is the same work, else None."""
    stored = read_sealed(path)
    if stored is not None and all(stored.get(name) == value for name, value in identity.items()):
        return stored
    return None


def _label(item: Asked) -> str:
    return item.name if item.difficulty is None else f"{item.name} at {item.difficulty}"
