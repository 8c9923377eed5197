"""Which differences are told apart: on constructed answers, and against an independent, slow reference."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from linearize.comparison.noise import Estimate, TaskOutcomes, difference, mean_retention, retention, t95
from linearize.evaluate.scores import TaskScore, average_retention


def outcomes(*seeds: str, teacher: str | None = None) -> TaskOutcomes:
    """Right answers as "1", wrong ones as "0", a text a seed; the teacher is right everywhere unless told."""
    rows = [[mark == "1" for mark in seed] for seed in seeds]
    return TaskOutcomes(np.array([mark == "1" for mark in teacher or "1" * len(seeds[0])]), np.array(rows))


def told_apart(first: list[TaskOutcomes], second: list[TaskOutcomes]) -> bool:
    found = difference(first, second)
    assert found is not None
    return not found.is_noise


def test_equal_answers_are_within_noise_with_an_interval_that_stays_open() -> None:
    same = [outcomes("1" * 80 + "0" * 20)]
    found = difference(same, same)
    assert found is not None
    assert found.value == 0
    assert found.is_noise
    assert found.interval[1] > 0.01


def test_a_large_difference_is_more_than_noise_and_a_small_one_is_not() -> None:
    strong, weak, near = (outcomes("1" * right + "0" * (100 - right)) for right in (90, 60, 88))
    assert told_apart([strong], [weak])
    assert not told_apart([strong], [near])


def test_answers_that_differ_on_the_same_questions_only_are_told_apart_by_pairing() -> None:
    first = outcomes("1" * 110 + "0" * 90)
    nested = outcomes("1" * 98 + "0" * 102)
    scattered = outcomes("0" * 102 + "1" * 98)
    # Both keep 12 of 200 less. One lost twelve answers; the other answers other questions altogether.
    assert told_apart([first], [nested])
    assert not told_apart([first], [scattered])


def test_few_discordant_pairs_are_no_evidence_as_in_mcnemars_exact_test() -> None:
    base = outcomes("1" * 200)
    for lost in range(1, 9):
        p_value = 2 * 0.5**lost
        assert told_apart([base], [outcomes("0" * lost + "1" * (200 - lost))]) <= (p_value < 0.05), lost


def test_a_difference_that_the_seeds_disagree_on_is_noise() -> None:
    def share(right: int) -> str:
        return "1" * right + "0" * (200 - right)

    steady = [outcomes(share(150), share(152), share(149))], [outcomes(share(120), share(123), share(118))]
    wild = [outcomes(share(150), share(152), share(149))], [outcomes(share(160), share(60), share(141))]
    assert told_apart(*steady)
    assert not told_apart(*wild)
    # The questions alone would have called it a difference.
    means = [np.concatenate([cell[0].student_SQ.ravel() for cell in side]).mean() for side in (wild[:1], wild[1:])]
    assert means[0] - means[1] > 0.1


def test_one_seed_says_nothing_of_other_seeds() -> None:
    first, second = outcomes("1" * 90 + "0" * 10), outcomes("1" * 60 + "0" * 40)
    alone = difference([first], [second])
    twice = difference(
        [TaskOutcomes(first.teacher_Q, first.student_SQ.repeat(2, 0))],
        [TaskOutcomes(second.teacher_Q, second.student_SQ.repeat(2, 0))],
    )
    assert alone == twice, "seeds that agree in every answer add no noise"


def test_the_intervals_are_those_of_a_slow_reference() -> None:
    draw = np.random.default_rng(3)
    shapes = [(3, 40), (3, 65)]
    teachers = [draw.random(size) < 0.9 for _, size in shapes]
    sides = [[draw.random(shape) < share for shape in shapes] for share in (0.8, 0.6)]
    first, second = ([TaskOutcomes(t, s) for t, s in zip(teachers, side, strict=True)] for side in sides)
    found = difference(first, second)
    assert found is not None
    value, half = _reference(teachers, *sides)
    # Sums of some hundred doubles.
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.interval == pytest.approx((value - half, value + half), abs=1e-12)


def _reference(teachers: list[Any], first: list[Any], second: list[Any]) -> tuple[float, float]:
    """Loops over seeds and questions, with statistics of the standard library."""
    seeds = range(len(first[0]))
    by_seed: list[float] = [0.0 for _ in seeds]
    variance = 0.0
    for teacher, one, other in zip(teachers, first, second, strict=True):
        share = sum(map(bool, teacher)) / len(teacher)
        per_question = []
        for question in range(len(teacher)):
            both = [(int(one[seed][question]) - int(other[seed][question])) / share for seed in seeds]
            per_question.append(sum(both) / len(both))
            for seed in seeds:
                by_seed[seed] += both[seed] / len(teacher) / len(teachers)
        padded = [*per_question, 1 / share, -1 / share]
        variance += statistics.pvariance(padded) / len(padded) / len(teachers) ** 2
    over_seeds = 4.303 * statistics.stdev(by_seed) / math.sqrt(3)
    return statistics.mean(by_seed), max(1.959964 * math.sqrt(variance), over_seeds)


@pytest.mark.parametrize(("num_seeds", "between_seeds"), [(1, 0.0), (3, 0.0), (3, 0.05), (5, 0.02)])
def test_cells_that_do_not_differ_are_told_apart_in_one_of_twenty_cases_at_most(
    num_seeds: int, between_seeds: float
) -> None:
    draw = np.random.default_rng(num_seeds)
    wrong, trials = 0, 600
    for _ in range(trials):
        shares = [draw.beta(3, 0.6, size=80) for _ in range(3)]
        sides = []
        for _ in range(2):
            shift_S1 = draw.normal(0, between_seeds, size=(num_seeds, 1))
            sides.append([TaskOutcomes(np.ones(80, bool), draw.random((num_seeds, 80)) < s + shift_S1) for s in shares])
        wrong += told_apart(*sides)
    # 5 % and two standard deviations of 600 trials.
    assert wrong / trials < 0.068


def test_one_seed_has_the_intervals_of_the_report_of_a_run() -> None:
    tasks = [outcomes("1" * 30 + "0" * 20), outcomes("1" * 45 + "0" * 5, teacher="1" * 48 + "00")]
    scores = [TaskScore.from_answers(t.teacher_Q.tolist(), t.student_SQ[0].tolist()) for t in tasks]
    for task, score in zip(tasks, scores, strict=True):
        assert retention(task) == Estimate(score.retention, score.retention_interval())  # type: ignore[arg-type]
    value, interval = average_retention(scores)  # type: ignore[misc]
    found = mean_retention(tasks)
    assert found is not None
    assert found.value == value
    assert found.interval == pytest.approx(interval, abs=1e-12)


def test_seeds_that_disagree_widen_the_interval_of_what_is_kept() -> None:
    near = retention(outcomes("1" * 80 + "0" * 20, "1" * 81 + "0" * 19, "1" * 79 + "0" * 21))
    far = retention(outcomes("1" * 80 + "0" * 20, "1" * 99 + "0", "1" * 61 + "0" * 39))
    assert near is not None
    assert far is not None
    assert near.value == pytest.approx(far.value)
    # Student's t with two degrees of freedom: 4.303 · 19 points / √3.
    assert far.interval[1] - far.value == pytest.approx(4.303 * 0.19 / math.sqrt(3), abs=1e-3)
    assert near.interval[1] - near.value < 0.1


def test_a_task_that_the_teacher_never_gets_right_counts_nowhere() -> None:
    hopeless, fine = outcomes("1" * 10, teacher="0" * 10), outcomes("1" * 9 + "0")
    assert retention(hopeless) is None
    assert mean_retention([hopeless]) is None
    assert mean_retention([hopeless, fine]) == mean_retention([fine])
    assert difference([hopeless], [hopeless]) is None
    assert difference([hopeless, fine], [hopeless, fine]) == difference([fine], [fine])


def test_other_questions_or_another_number_of_seeds_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"outcomes of \(1, 4\) and \(1, 3\) seeds and questions"):
        difference([outcomes("1111")], [outcomes("111")])
    with pytest.raises(ValueError, match="expected the same questions, seeds and teacher's answers"):
        difference([outcomes("1111")], [outcomes("1111", "1111")])


def test_students_quantile_is_the_published_one() -> None:
    # Student (1908) and every table since.
    assert [t95(n) for n in (1, 2, 5, 10)] == pytest.approx([12.706, 4.303, 2.571, 2.228], abs=5e-4)
    # Published: 2.201 at 11, 2.042 at 30, 1.980 at 120.
    assert [t95(n) for n in (11, 30, 120)] == pytest.approx([2.201, 2.042, 1.980], abs=5e-4)
