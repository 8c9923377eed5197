"""A further look at a finished student, beside the questions that it and its teacher answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from linearize.protocols.benchmark import Benchmark
    from linearize.protocols.conversation import Conversation
    from linearize.protocols.teacher import TeacherAdapter


class Answer(NamedTuple):
    """What a model answered, and whether its benchmark finds that right."""

    text: str
    correct: bool


@dataclass(frozen=True, slots=True)
class AnsweredTask:
    """A task of a benchmark with the answers that are there already.

    Attributes:
        name: in the results.
        teacher: its answers, one for each question, in their order. student: the same of the student.
    """

    name: str
    benchmark: Benchmark
    questions: Sequence[Conversation]
    teacher: Sequence[Answer]
    student: Sequence[Answer]


class EvaluatedStudent(Protocol):
    """What an evaluator gets to look at."""

    model: Any
    """The converted model in its student route; ``linearize.student.convert.teacher_route`` makes it its teacher."""
    adapter: TeacherAdapter
    tasks: Sequence[AnsweredTask]
    """Of all benchmarks, without the positions of their dials."""
    batch_size: int
    """Questions that the recipe has answered together."""
    max_new_tokens: int
    """Longest answer in tokens."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` returns, as JSON gives it back; stored under ``name``, and found there when the run resumes.

        For parts of an evaluation that take long. The evaluation's own result is stored without it.
        """
        ...

    def progress(self, done: int, total: int) -> None:
        """Moves the bar; in questions, or whatever the evaluator counts."""
        ...


@dataclass(frozen=True, slots=True)
class Section:
    """What people are shown of an evaluation on the page, in report.md and in the terminal: data, no markup.

    Attributes:
        head: names of the columns; the first names the rows. rows: one text for each column.
        caption: one line on what the table holds.
        note: sentences on how to read it, for the page and report.md.
        warnings: what the user should look at, a clause each without its full stop; `linearize compare` shows them too.

    Raises:
        ValueError: a row has another number of cells than the head.
        TypeError: something is no text.
    """

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    caption: str = ""
    note: str = ""
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.head):
                raise ValueError(f"row {number} of '{self.title}' has {len(row)} cells; expected {len(self.head)}")
        for lists in (self.head, self.warnings, *self.rows):
            if isinstance(lists, str):
                raise TypeError(f"expected a list of texts in section '{self.title}', got the text {lists!r}")
        cells = (cell for row in self.rows for cell in row)
        for text in (self.title, self.caption, self.note, *self.head, *self.warnings, *cells):
            if not isinstance(text, str):
                raise TypeError(f"expected a text in section '{self.title}', got {text!r}")


class Evaluator(Protocol):
    """Measures something of a finished student, and says how people are shown it."""

    def evaluate(self, student: EvaluatedStudent) -> Mapping[str, Any] | None:
        """The results as JSON values; None where this student has nothing to measure.

        It leaves the model as it was. All that it depends on is the student and the evaluator's options: the result is
        stored, and found again when the run resumes.
        """
        ...

    def section(self, results: Mapping[str, Any]) -> Section | None:
        """How people are shown what ``evaluate`` returned; None where programs alone need it."""
        ...
