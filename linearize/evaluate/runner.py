"""Asks teacher and student the same questions and sums up. Every finished task is a file, so evaluation resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.errors import DataError
from linearize.evaluate.agreement import Agreement, measure_agreement
from linearize.evaluate.answers import generate_answers
from linearize.evaluate.evaluators import ask_evaluators
from linearize.evaluate.examples import keep_examples
from linearize.evaluate.scores import TaskScore, average_retention
from linearize.evaluate.stored_work import asked_of, same_work
from linearize.files.json_file import write_json, write_sealed
from linearize.files.names import file_name
from linearize.protocols.evaluator import Answer, AnsweredTask
from linearize.student.convert import teacher_route

if TYPE_CHECKING:
    from linearize.plugin.components import ResolvedComponent
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
    evaluators: Mapping[str, ResolvedComponent] | None = None,
    key: str = "",
    shared: SharedAnswers | None = None,
) -> dict[str, Any]:
    """The scores of a converted model against its own teacher route; also written to ``folder``/summary.json.

    Args:
        benchmarks: by the name that the recipe gives them; tasks that several have in common become "benchmark/task".
        folder: holds one file per finished piece of work, every answer included; what is there is not asked again.
        dial_questions: questions per position of a difficulty dial; 0 turns no dial.
        num_examples: questions per task that are kept with image and both answers.
        evaluators: further looks at the student, by the name that the results give each.
        key: names the weights; stored work under another key, or of other questions, is done anew.
        shared: where the teacher's answers are looked for, and put, besides; None: in ``folder`` alone.

    Returns:
        tasks.<name>: teacher, student (shares of right answers), retention (None where the teacher's is 0), questions,
        teacher_interval, student_interval, retention_interval (95 %), kl, top1_agreement; average_retention and
        average_retention_interval over the tasks; kl (teacher || student, nats per answer token) and top1_agreement
        over all answer tokens; answer_tokens; dials.<name>: one row per difficulty; evaluators.<name>: results and
        section of each that found something to measure.

    Raises:
        DataError: there is no benchmark, or a task without questions.
        PluginFault: an evaluator fails, or gives something else than its protocol says.
    """
    asked = list_questions(benchmarks, dial_questions)
    counter = _Counter(progress, _passes(asked))
    work = _Work(model, adapter, batch_size, max_new_tokens, folder, key, shared, counter)
    tasks: dict[str, dict[str, Any]] = {}
    dials: dict[str, list[dict[str, Any]]] = {}
    scores: list[TaskScore] = []
    examples: list[dict[str, Any]] = []
    answered: list[AnsweredTask] = []
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
        answered.append(AnsweredTask(item.name, item.benchmark, item.questions, _given(teacher), _given(student)))
    average = average_retention(scores)
    summary = {
        "tasks": tasks,
        "average_retention": average[0] if average else None,
        "average_retention_interval": list(average[1]) if average else None,
        "kl": total.kl,
        "top1_agreement": total.top1,
        "answer_tokens": total.tokens,
        "dials": dials,
        "evaluators": ask_evaluators(
            evaluators or {},
            model,
            adapter,
            answered,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            folder=folder / "evaluators",
            key=key,
            progress=progress,
        ),
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
                "expected at least one: look at its options under evaluate.benchmarks"
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

    def answers(self, item: Asked, role: str) -> list[dict[str, Any]]:
        """One {"answer", "correct"} per question of the teacher's or the student's route."""
        label = f"{_label(item)}: {role} answers"
        identity = {**self._identity(item), "role": role, "max_new_tokens": self.max_new_tokens}
        places = [(item.file(self.folder, role), identity)]
        if self.shared is not None and role == "teacher":
            places.append((item.file(self.shared.folder, role), {**identity, "key": self.shared.key}))
        stored = [same_work(path, due) for path, due in places]
        answers: list[dict[str, Any]] | None = next((list(one["answers"]) for one in stored if one is not None), None)
        if answers is None:
            answers = self._ask(item, role, label)
        else:
            self.counter.add(label, len(item.questions))
        for (path, due), one in zip(places, stored, strict=True):
            if one is None:
                write_sealed(path, {**due, "answers": answers})
        return answers

    def _ask(self, item: Asked, role: str, label: str) -> list[dict[str, Any]]:
        with teacher_route(self.model) if role == "teacher" else nullcontext():
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
        if (stored := same_work(path, identity)) is not None:
            self.counter.add(label, len(item.questions))
            return Agreement(**stored["agreement"])
        agreement = measure_agreement(
            self.model, self.adapter, item.questions, batch_size=self.batch_size,
            progress=lambda count: self.counter.add(label, count),
        )  # fmt: skip
        write_sealed(path, {**identity, "agreement": asdict(agreement)})
        return agreement

    def _identity(self, item: Asked) -> dict[str, Any]:
        return {
            "key": self.key, "benchmark": item.benchmark_name, "task": item.task, "difficulty": item.difficulty,
            "questions": asked_of(item.questions),
        }  # fmt: skip


def _given(answers: Sequence[Mapping[str, Any]]) -> list[Answer]:
    return [Answer(answer["answer"], answer["correct"]) for answer in answers]


def _label(item: Asked) -> str:
    return item.name if item.difficulty is None else f"{item.name} at {item.difficulty}"
