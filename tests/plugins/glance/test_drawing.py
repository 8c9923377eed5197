"""What is drawn: reproducible, apart by split, as difficult as asked, and true to its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
from linearize_glance.drawing import TASKS, draw, draw_arrays
from linearize_glance.sprites import digit_pool, handwritten
from linearize_glance.streams import SPLITS, TRAINING_SPLITS, Split, stream

from linearize.errors import UnknownNameError
from linearize.protocols.conversation import Conversation

ALL_TASKS = tuple(TASKS)
# Recall has no pictures, and its texts of 2 pairs repeat by chance alone: it has a test of its own.
PICTURE_TASKS = tuple(name for name in ALL_TASKS if name != "recall")


def fingerprints(task: str, split: Split, count: int, difficulty: int | None = None) -> set[bytes]:
    """A digest of the pictures and first question of each of a split's first draws."""
    return {fingerprint(task, split, index, difficulty) for index in range(count)}


def fingerprint(task: str, split: Split, index: int, difficulty: int | None) -> bytes:
    drawing = draw_arrays(task, split, 0, index, difficulty=difficulty, turns=1)
    digest = hashlib.sha256(drawing.turns[0].question.encode())
    for picture in drawing.pictures:
        digest.update(picture.tobytes())
    return digest.digest()


@pytest.mark.parametrize("task", ALL_TASKS)
def test_equal_arguments_give_equal_conversations(task: str) -> None:
    for index in range(5):
        first, second = draw(task, "teacher", 3, index), draw(task, "teacher", 3, index)
        assert first.turns == second.turns
        assert [image.tobytes() for image in first.images] == [image.tobytes() for image in second.images]


@pytest.mark.parametrize("task", ALL_TASKS)
def test_each_argument_changes_what_is_drawn(task: str) -> None:
    level = TASKS[task].full[1]
    original = [draw(task, "teacher", 3, index, difficulty=level).turns for index in range(20)]
    assert [draw(task, "distil", 3, index, difficulty=level).turns for index in range(20)] != original
    assert [draw(task, "teacher", 4, index, difficulty=level).turns for index in range(20)] != original
    assert [draw(task, "teacher", 3, index, difficulty=level).turns for index in range(20, 40)] != original


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_numpy_integer_names_the_same_conversation_as_a_plain_one(task: str) -> None:
    assert draw(task, "distil", np.int64(1), np.int64(7)).turns == draw(task, "distil", 1, 7).turns  # type: ignore[arg-type]


@pytest.mark.parametrize("task", PICTURE_TASKS)
def test_no_question_of_one_split_occurs_in_another(task: str) -> None:
    sets = [fingerprints(task, split, 1500) for split in SPLITS]
    assert sum(map(len, sets)) == len(set().union(*sets))


def test_no_recall_text_of_one_split_occurs_in_another() -> None:
    sets = [fingerprints("recall", split, 3000, difficulty=8) for split in SPLITS]
    assert sum(map(len, sets)) == len(set().union(*sets))


def test_streams_of_different_names_differ() -> None:
    names: list[tuple[Split, int, str, int]] = [
        ("teacher", 0, "ocr", 12), ("distil", 0, "ocr", 12), ("teacher", 1, "ocr", 12), ("teacher", 0, "count", 12),
        ("teacher", 0, "ocr", 1), ("teacher", 0, "ocr", 2), ("teacher", 10, "ocr", 12),
    ]  # fmt: skip
    starts = {stream(*name).bytes(16) for name in names}
    assert len(starts) == len(set(names))


def test_digits_of_evaluation_and_validation_are_never_used_in_training() -> None:
    assert digit_pool("teacher") == digit_pool("distil")
    pools = [set(digit_pool(split)) for split in ("teacher", "validation", "evaluation")]
    assert [len(pool) for pool in pools] == [1797 - 360, 120, 240]
    assert len(set().union(*pools)) == 1797
    labels = handwritten()[1]
    for pool in pools:
        assert {int(labels[number]) for number in pool} == set(range(10))


@pytest.mark.parametrize("split", SPLITS)
def test_digits_come_from_the_pool_of_their_split(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    from linearize_glance import reading

    used: list[int] = []

    def spy(number: int, **options: float) -> object:
        used.append(number)
        return reading_mask(number, **options)

    reading_mask = reading.digit_mask
    monkeypatch.setattr(reading, "digit_mask", spy)
    for index in range(100):
        draw("digits", split, 0, index)
    assert used
    assert set(used) <= set(digit_pool(split))


@pytest.mark.parametrize("task", ALL_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_there_is_one_image_mark_per_image_and_all_stand_in_the_first_turn(task: str, split: Split) -> None:
    for conversation in some(task, split):
        assert conversation.num_image_marks() == len(conversation.images)
        assert conversation.turns[0].question.count("<image>") == len(conversation.images)
        assert all(turn.answer for turn in conversation.turns)
        assert conversation.task == task


@pytest.mark.parametrize("task", ALL_TASKS)
def test_turns_ask_different_questions_and_the_first_stays_when_more_are_asked(task: str) -> None:
    for index in range(20):
        one, four = (draw(task, "teacher", 0, index, turns=turns) for turns in (1, 4))
        assert len(one.turns) == 1
        assert four.turns[0] == one.turns[0]
        asked = [turn.question.rpartition("\n")[2] for turn in four.turns]
        assert len(set(asked)) == len(asked) <= 4


@pytest.mark.parametrize("task", sorted(TASKS))
def test_training_covers_every_level_and_the_held_out_splits_keep_to_the_usual_ones(task: str) -> None:
    rng = np.random.default_rng(0)
    for split in SPLITS:
        low, high = TASKS[task].full if split in TRAINING_SPLITS else TASKS[task].usual
        levels = [TASKS[task].sample_level(rng, split) for _ in range(3000)]
        assert set(levels) == set(range(low, high + 1))


@pytest.mark.parametrize("task", ["ocr", "recall", "album"])
def test_training_draws_more_easy_than_hard_levels(task: str) -> None:
    rng = np.random.default_rng(0)
    low, high = TASKS[task].full
    levels = [TASKS[task].sample_level(rng, "teacher") for _ in range(3000)]
    assert np.mean(levels) < (low + high) / 2 - 0.1 * (high - low)


def test_difficulty_sets_what_its_unit_counts() -> None:
    for level in range(1, 9):
        ocr = draw("ocr", "evaluation", 0, 5, difficulty=level)
        assert len(ocr.turns[0].answer.split(" ")) == level
        assert ocr.images[0].size == (112 if level <= 4 else 224, 112)
    for level in (2, 8, 32):
        pairs = draw("recall", "evaluation", 0, 5, difficulty=level).turns[0].question.split("\n")[0].split(" ")
        assert len(set(pairs[::2])) == level
        assert len(pairs[1::2]) == level
    for level in range(1, 7):
        assert len(draw("album", "evaluation", 0, 5, difficulty=level).images) == level


def test_every_picture_is_one_tile_but_long_texts() -> None:
    for task in PICTURE_TASKS:
        for conversation in some(task, "evaluation"):
            assert all(image.size == (112, 112) and image.mode == "RGB" for image in conversation.images)


def test_recall_answers_are_the_digits_behind_the_keys() -> None:
    for conversation in some("recall", "teacher"):
        words = conversation.turns[0].question.split("\n")[0].split(" ")
        bound = dict(zip(words[::2], words[1::2], strict=True))
        for turn in conversation.turns:
            key = turn.question.rpartition("\n")[2].removeprefix("what is ").removesuffix(" ?")
            assert turn.answer == bound[key]


@pytest.mark.parametrize("difficulty", [0, 9])
def test_a_difficulty_that_cannot_be_drawn_is_an_error_that_says_which_can(difficulty: int) -> None:
    with pytest.raises(ValueError, match=f"'ocr' asked for with {difficulty} characters; it draws 1 to 8"):
        draw("ocr", "teacher", 0, 0, difficulty=difficulty)


def test_unknown_tasks_splits_and_empty_conversations_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'count'"):
        draw("counts", "teacher", 0, 0)
    with pytest.raises(ValueError, match="split 'train' asked for; there are teacher, distil"):
        draw("count", "train", 0, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 turns asked for"):
        draw("count", "teacher", 0, 0, turns=0)


def some(task: str, split: Split, count: int = 30) -> Iterator[Conversation]:
    return (draw(task, split, 0, index) for index in range(count))
