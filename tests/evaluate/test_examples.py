from PIL import Image, ImageChops

from linearize.evaluate.examples import LONGEST_SIDE, choose_examples, keep_examples
from linearize.protocols.conversation import Conversation, Turn


def outcomes(text):
    return [{"answer": "x", "correct": letter == "1"} for letter in text]


def test_a_difference_is_shown_before_questions_that_both_answer_right():
    assert choose_examples(outcomes("1111"), outcomes("1110"), 2) == [3, 0]


def test_what_goes_well_is_shown_even_when_many_answers_differ():
    assert choose_examples(outcomes("1111"), outcomes("0001"), 2) == [0, 3]


def test_a_task_without_differences_still_has_its_examples():
    assert choose_examples(outcomes("111"), outcomes("111"), 2) == [0, 1]
    assert choose_examples(outcomes("1"), outcomes("1"), 3) == [0]


def test_small_drawings_are_kept_exactly_and_photographs_are_scaled_down(tmp_path):
    drawing = Image.effect_noise((112, 112), 80).convert("RGB")
    photograph = Image.effect_noise((1000, 500), 80).convert("RGB")
    question = Conversation((Turn("<image><image>what?", "that"),), (drawing, photograph))
    [example] = keep_examples(tmp_path, "a/b", [question], outcomes("1"), outcomes("0"), 3)
    small, large = (Image.open(tmp_path / path) for path in example["images"])
    assert ImageChops.difference(small.convert("RGB"), drawing).getbbox() is None
    assert large.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert (example["teacher_correct"], example["student_correct"], example["right"]) == (True, False, "that")
