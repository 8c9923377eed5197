"""What a cell keeps of its teacher, and which differences between cells are more than noise. Imports no torch.

**Two sources of noise.** The questions are a sample, and so are the seeds. Every cell answers the same questions in
every seed, so a difference is taken question by question and seed by seed: what is hard for both, or for one seed's
data, is in neither. With x[s, q] the difference of the two answers (right 1, wrong 0) over the teacher's share of right
answers, two 95 % intervals of its mean are made, and the wider one counts:

- over the questions: x averaged over the seeds, in a normal interval with one more discordant pair in each direction,
  so that few of them do not look certain (Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012;
  for one seed it tests what McNemar's test does). Tasks are strata of equal weight;
- over the seeds: x averaged over the questions, in Student's interval with S - 1 degrees of freedom: the paired t-test.
  One seed has none, and then nothing is known of how much another seed would change.

So a difference is more than noise when both other questions and other seeds would show it again.

Letters: S seeds, Q questions of one task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from linearize.evaluate.scores import Z95, Interval, TaskScore, average_retention

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TaskOutcomes:
    """Who answered which question of a task right.

    Attributes:
        teacher_Q: bool; the same in every seed and cell.
        student_SQ: bool, one row a seed.
    """

    teacher_Q: NDArray[np.bool_]
    student_SQ: NDArray[np.bool_]

    @property
    def teacher(self) -> float:
        """The teacher's share of right answers."""
        return float(self.teacher_Q.mean())

    def scores(self) -> list[TaskScore]:
        """The task's score in each seed."""
        teacher = self.teacher_Q.tolist()
        return [TaskScore.from_answers(teacher, row) for row in self.student_SQ.tolist()]

    def kept_SQ(self) -> Values:
        """Values whose mean is the retention; only where the teacher has something to keep."""
        return self.student_SQ / self.teacher


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions and seeds with its 95 % interval."""

    value: float
    interval: Interval

    @property
    def is_noise(self) -> bool:
        """Whether 0 lies within the interval; what that says of a difference is in the module's docstring."""
        low, high = self.interval
        return low <= 0.0 <= high


def retention(task: TaskOutcomes) -> Estimate | None:
    """What a cell keeps of one task; None where the teacher has nothing to keep.

    The interval is the one of ``TaskScore``, for several seeds the mean of theirs, or Student's over the seeds where
    that is wider.
    """
    if not task.teacher_Q.any():
        return None
    found = [(score.retention or 0.0, score.retention_interval() or (0.0, 0.0)) for score in task.scores()]
    return _over_seeds(found, [task.kept_SQ()])


def mean_retention(tasks: Sequence[TaskOutcomes]) -> Estimate | None:
    """What a cell keeps on average over the tasks that the teacher can do at all; None without any."""
    able = [task for task in tasks if task.teacher_Q.any()]
    if not able:
        return None
    by_seed = zip(*(task.scores() for task in able), strict=True)
    found = [average for scores in by_seed if (average := average_retention(scores)) is not None]
    return _over_seeds(found, [task.kept_SQ() for task in able])


def difference(first: Sequence[TaskOutcomes], second: Sequence[TaskOutcomes]) -> Estimate | None:
    """How much more the first cell keeps than the second, averaged over tasks; None where the teacher can do none.

    Args:
        first, second: the same tasks, questions and seeds in the same order.

    Raises:
        ValueError: the two were not asked the same, or not in the same number of seeds.
    """
    strata: list[Values] = []
    scales: list[float] = []
    for one, other in zip(first, second, strict=True):
        if one.student_SQ.shape != other.student_SQ.shape or not np.array_equal(one.teacher_Q, other.teacher_Q):
            raise ValueError(
                f"outcomes of {one.student_SQ.shape} and {other.student_SQ.shape} seeds and questions cannot "
                "be compared; expected the same questions, seeds and teacher's answers"
            )
        if one.teacher_Q.any():
            strata.append(one.kept_SQ() - other.kept_SQ())
            scales.append(1 / one.teacher)
    if not strata:
        return None
    value = fmean(float(values.mean()) for values in strata)
    half = max(Z95 * math.sqrt(_question_variance(strata, scales)), _seed_distance(strata))
    return Estimate(value, (value - half, value + half))


def t95(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def _over_seeds(found: Sequence[tuple[float, Interval]], strata: Sequence[Values]) -> Estimate:
    value, seeds = fmean(mean for mean, _ in found), _seed_distance(strata)
    below, above = fmean(mean - low for mean, (low, _) in found), fmean(high - mean for mean, (_, high) in found)
    return Estimate(value, (max(0.0, value - max(below, seeds)), value + max(above, seeds)))


def _question_variance(strata: Sequence[Values], scales: Sequence[float]) -> float:
    """Variance of the mean over strata, from the questions; ``scales`` are the values of one discordant pair."""
    total = 0.0
    for values_SQ, scale in zip(strata, scales, strict=True):
        padded = np.append(values_SQ.mean(0), [scale, -scale])
        total += float(padded.var()) / padded.size
    return total / len(strata) ** 2


def _seed_distance(strata: Sequence[Values]) -> float:
    """Half the width of Student's 95 % interval over the seeds; 0 for a single one."""
    num_seeds = strata[0].shape[0]
    if num_seeds == 1:
        return 0.0
    means_S = np.mean([values_SQ.mean(1) for values_SQ in strata], axis=0)
    return t95(num_seeds - 1) * float(means_S.std(ddof=1)) / math.sqrt(num_seeds)
