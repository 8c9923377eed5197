import math
import random

import pytest

from linearize.evaluate.scores import TaskScore, average_retention, wilson_interval


def test_wilson_interval_solves_the_score_equation_it_is_defined_by():
    # Its limits are the shares p at which the observed share is exactly z standard errors away.
    for correct, n in [(0, 7), (3, 7), (190, 200), (200, 200)]:
        for p in wilson_interval(correct, n):
            if 0 < p < 1:
                assert abs(correct / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-9)


def test_wilson_interval_of_an_all_right_task_does_not_claim_certainty():
    low, high = wilson_interval(200, 200)
    assert low == pytest.approx(0.981, abs=0.001)
    assert high == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match=f"{correct} right answers of {n} questions"):
        wilson_interval(correct, n)


def test_a_score_counts_pairs_of_outcomes():
    score = TaskScore.from_answers([True, True, True, False, False], [True, False, True, True, False])
    assert score == TaskScore(both=2, teacher_only=1, student_only=1, questions=5)
    assert (score.teacher, score.student, score.retention) == (3 / 5, 3 / 5, 1.0)


def test_a_score_of_answers_in_different_numbers_is_refused():
    with pytest.raises(ValueError, match="2 answers of the teacher, 1 of the student"):
        TaskScore.from_answers([True, True], [True])


def test_nothing_can_be_kept_of_a_teacher_that_is_never_right():
    score = TaskScore(both=0, teacher_only=0, student_only=3, questions=10)
    assert score.retention is None
    assert score.retention_interval() is None
    assert average_retention([score]) is None


def test_average_retention_leaves_out_tasks_that_the_teacher_cannot_do():
    half = TaskScore(both=50, teacher_only=50, student_only=0, questions=100)
    whole = TaskScore(both=100, teacher_only=0, student_only=0, questions=100)
    mean, (low, high) = average_retention([half, whole, TaskScore(0, 0, 5, 100)])
    assert mean == 0.75
    assert low < 0.75 < high


def test_the_retention_interval_holds_the_truth_in_about_95_of_100_samples():
    draw = random.Random(0)
    shares = {"both": 0.86, "teacher": 0.07, "student": 0.02, "neither": 0.05}
    truth = (shares["both"] + shares["student"]) / (shares["both"] + shares["teacher"])
    held = 0
    for _ in range(600):
        outcome = draw.choices(list(shares), list(shares.values()), k=200)
        low, high = TaskScore(
            outcome.count("both"), outcome.count("teacher"), outcome.count("student"), 200
        ).retention_interval()
        held += low <= truth <= high
    # 600 samples of a 95 % event: two standard errors are 1.8 points.
    assert 0.93 <= held / 600 <= 0.97


def test_pairing_narrows_the_retention_interval():
    # The same shares, once answering right on the same questions and once on different ones.
    together = TaskScore(both=150, teacher_only=10, student_only=0, questions=200).retention_interval()
    apart = TaskScore(both=110, teacher_only=50, student_only=40, questions=200).retention_interval()
    assert together[1] - together[0] < 0.5 * (apart[1] - apart[0])
