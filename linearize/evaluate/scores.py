"""Shares of right answers, what a student keeps of its teacher's, and 95 % intervals for both. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""

Interval = tuple[float, float]


def wilson_interval(correct: int, n: int, z: float = Z95) -> Interval:
    """The Wilson score interval of a share: sensible at 0 and 1 and for few questions, unlike p ± z·σ.

    Raises:
        ValueError: n is not positive, or correct is not within 0..n.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} right answers of {n} questions; expected 0 <= right <= questions, and questions")
    return _wilson(correct, n, z)


def _wilson(correct: float, n: float, z: float) -> Interval:
    centre = correct + z * z / 2
    half = z * math.sqrt(max(correct * (n - correct) / n, 0.0) + z * z / 4)
    # The limits at none and all are 0 and 1 exactly; rounding would miss them by a hair.
    low = (centre - half) / (n + z * z) if correct > 0 else 0.0
    return low, (centre + half) / (n + z * z) if correct < n else 1.0


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How teacher and student did on the same questions.

    Attributes:
        both: questions that both answered right.
        teacher_only: right for the teacher alone.
        student_only: right for the student alone.
        questions: how many were asked.
    """

    both: int
    teacher_only: int
    student_only: int
    questions: int

    @classmethod
    def from_answers(cls, teacher: Sequence[bool], student: Sequence[bool]) -> TaskScore:
        """The score of paired outcomes, one pair a question.

        Raises:
            ValueError: there is no question, or the two lists differ in length.
        """
        if len(teacher) != len(student) or not teacher:
            raise ValueError(
                f"{len(teacher)} answers of the teacher, {len(student)} of the student; expected equal numbers above 0"
            )
        pairs = list(zip(teacher, student, strict=True))
        return cls(
            both=sum(t and s for t, s in pairs),
            teacher_only=sum(t and not s for t, s in pairs),
            student_only=sum(s and not t for t, s in pairs),
            questions=len(pairs),
        )

    @property
    def teacher_correct(self) -> int:
        """Questions that the teacher answered right."""
        return self.both + self.teacher_only

    @property
    def student_correct(self) -> int:
        """Questions that the student answered right."""
        return self.both + self.student_only

    @property
    def teacher(self) -> float:
        """The teacher's share of right answers."""
        return self.teacher_correct / self.questions

    @property
    def student(self) -> float:
        """The student's share of right answers."""
        return self.student_correct / self.questions

    @property
    def retention(self) -> float | None:
        """The student's share over the teacher's; None where the teacher has nothing to keep."""
        return self.student_correct / self.teacher_correct if self.teacher_correct else None

    def teacher_interval(self) -> Interval:
        """95 % Wilson interval of the teacher's share."""
        return wilson_interval(self.teacher_correct, self.questions)

    def student_interval(self) -> Interval:
        """95 % Wilson interval of the student's share."""
        return wilson_interval(self.student_correct, self.questions)

    def retention_interval(self) -> Interval | None:
        """95 % interval of the retention, from the pairs: questions that are hard for both do not widen it.

        Bonett and Price, "Confidence intervals for a ratio of binomial proportions based on paired data"
        (Statistics in Medicine 25, 2006): Wilson intervals of both shares among the questions that anyone answered
        right, at a z that the pairing shrinks. Unlike the bootstrap and the log-ratio's normal interval it stays
        open when no pair differs. None where the retention is None.
        """
        if not self.teacher_correct:
            return None
        student, teacher, anyone = self.student_correct, self.teacher_correct, self.questions - self._neither
        shared = math.sqrt((self.teacher_only + self.student_only + 2) / ((student + 1) * (teacher + 1)))
        own = [math.sqrt((1 - (right + 1) / (anyone + 2)) / (right + 1)) for right in (student, teacher)]
        z = Z95 * shared / sum(own)
        student_low, student_high = _wilson(student, anyone, z)
        teacher_low, teacher_high = _wilson(teacher, anyone, z)
        return student_low / teacher_high, student_high / teacher_low

    @property
    def _neither(self) -> int:
        return self.questions - self.both - self.teacher_only - self.student_only


def average_retention(scores: Iterable[TaskScore]) -> tuple[float, Interval] | None:
    """The mean retention over the tasks that the teacher can do at all, and its 95 % interval; None without any.

    The interval adds the tasks' squared distances to their own limits (Zou and Donner, "Construction of confidence
    limits about effect measures", Statistics in Medicine 27, 2008), so lopsided limits stay lopsided.
    """
    kept: list[tuple[float, Interval]] = []
    for score in scores:
        retention, interval = score.retention, score.retention_interval()
        if retention is not None and interval is not None:
            kept.append((retention, interval))
    if not kept:
        return None
    mean = sum(retention for retention, _ in kept) / len(kept)
    below = math.sqrt(sum((retention - low) ** 2 for retention, (low, _) in kept)) / len(kept)
    above = math.sqrt(sum((high - retention) ** 2 for retention, (_, high) in kept)) / len(kept)
    return mean, (max(0.0, mean - below), mean + above)
