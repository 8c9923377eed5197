"""A turn that goes on from the cache says what a reader of the whole conversation would say, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from talks import Talk

from linearize.errors import DataError
from linearize.inference.speaker import History, Sampling, Speaker
from linearize.protocols import Batch, Conversation, Turn

FEW = Sampling(max_new_tokens=8)


@pytest.fixture(params=["linear", "hybrid", "teacher"])
def speaker(request: pytest.FixtureRequest) -> Speaker:
    talk: Talk = request.getfixturevalue("hybrid" if request.param == "hybrid" else "talk")
    return Speaker(talk.teacher if request.param == "teacher" else talk.student, talk.adapter, FEW)


def reader(speaker: Speaker) -> Speaker:
    """One that was told the words of the conversation so far, and has read none of them."""
    fresh = Speaker(speaker.model, speaker.adapter, speaker.sampling)
    fresh.history = History(speaker.history.turns, speaker.history.images)
    return fresh


@contextmanager
def counted_tokens(model: Any) -> Iterator[list[int]]:
    """The lengths of the model's calls."""
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield lengths
    hook.remove()


def test_a_turn_from_the_cache_equals_the_whole_read_again(speaker: Speaker, talk: Talk) -> None:
    questions = [turn.question for one in talk.asked for turn in one.turns][:6]
    pictures = [one.images if number == 0 else () for one in talk.asked for number, _ in enumerate(one.turns)][:6]
    assert sum(map(len, pictures)) > 2, "images were to come in later turns too"
    for number, (question, images) in enumerate(zip(questions, pictures, strict=True)):
        whole = reader(speaker)
        with counted_tokens(speaker.model) as lengths:
            answer = speaker.answer(question, images)
        assert answer.read_again == ""
        assert lengths == [answer.num_read] + [1] * (answer.num_tokens - 1)
        expected = whole.answer(question, images)
        assert (expected.num_kept, answer.num_kept > 0) == (0, number > 0)
        assert expected.num_read == answer.num_read + answer.num_kept
        assert speaker.history.read_S is not None
        assert whole.history.read_S is not None
        assert torch.equal(speaker.history.read_S, whole.history.read_S)
        assert (answer.text, answer.num_tokens) == (expected.text, expected.num_tokens)


def test_the_first_answer_is_the_one_of_an_evaluation(talk: Talk) -> None:
    from linearize.evaluate.answers import generate_answers

    asked = replace(talk.asked[0], turns=talk.asked[0].turns[:1])
    [expected] = generate_answers(talk.student, talk.adapter, [asked], batch_size=1, max_new_tokens=8)
    assert Speaker(talk.student, talk.adapter, FEW).answer(asked.turns[0].question, asked.images).text == expected


def test_a_question_without_marks_is_asked_below_its_images(talk: Talk) -> None:
    one, other = (Speaker(talk.teacher, talk.adapter, FEW) for _ in range(2))
    one.answer("read the text", [talk.picture])
    other.answer("<image>\nread the text", [talk.picture])
    assert one.history.turns == other.history.turns
    other.reset()
    with pytest.raises(DataError, match="holds 1 <image> marks for 0 images"):
        other.answer("what is <image> ?")
    assert other.history == History()


def test_the_pieces_are_the_answer(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linearize.inference.speaker.SECONDS_BETWEEN_PIECES", 0.0)
    pieces: list[str] = []
    speaker = Speaker(talk.student, talk.adapter, Sampling(max_new_tokens=12, temperature=1.5))
    text = speaker.answer("read the text", [talk.picture], tell=pieces.append).text
    assert "".join(pieces) == text
    assert len(pieces) > 1


def test_an_answer_that_was_stopped_is_part_of_the_conversation(talk: Talk) -> None:
    speaker = Speaker(talk.student, talk.adapter, Sampling(max_new_tokens=12, temperature=1.5))
    asked = iter([False, False, True])
    answer = speaker.answer("read the text", [talk.picture], stopped=lambda: next(asked))
    assert answer.num_tokens == 3
    assert speaker.history.turns[-1].answer == answer.text
    whole = reader(speaker)
    after, expected = speaker.answer("how many ?"), whole.answer("how many ?")
    assert (after.text, after.num_tokens) == (expected.text, expected.num_tokens)


def test_an_answer_that_failed_leaves_the_words_and_no_half_written_state(talk: Talk) -> None:
    speaker = Speaker(talk.student, talk.adapter, FEW)
    speaker.answer("read the text", [talk.picture])
    turns, asked = speaker.history.turns, iter([False])
    with pytest.raises(StopIteration):
        speaker.answer("how many ?", stopped=lambda: next(asked) or next(asked))
    assert speaker.history == History(turns, (talk.picture,))
    whole = reader(speaker)
    assert speaker.answer("how many ?").text == whole.answer("how many ?").text


def test_draws_follow_the_seed(talk: Talk) -> None:
    def say(seed: int) -> list[str]:
        speaker = Speaker(talk.student, talk.adapter, Sampling(max_new_tokens=12, temperature=2.0, seed=seed))
        return [speaker.answer("read the text", [talk.picture]).text, speaker.answer("how many ?").text]

    assert say(3) == say(3)
    assert say(3) != say(4)


class Louder:
    """An adapter whose template writes earlier turns in another way than the last one."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.decode = adapter.decode

    def batch(self, conversations: list[Conversation], *, for_generation: bool) -> Batch:
        changed = [
            replace(one, turns=(*(Turn(t.question + " !", t.answer) for t in one.turns[:-1]), one.turns[-1]))
            for one in conversations
        ]
        return self.adapter.batch(changed, for_generation=for_generation)


def test_a_prompt_that_does_not_go_on_is_read_as_a_whole(talk: Talk) -> None:
    speaker = Speaker(talk.student, Louder(talk.adapter), FEW)  # type: ignore[arg-type]
    speaker.answer("read the text", [talk.picture])
    whole = reader(speaker)
    answer, expected = speaker.answer("how many ?"), whole.answer("how many ?")
    assert "writes what was said before otherwise" in answer.read_again
    assert (answer.num_kept, answer.num_read) == (0, expected.num_read)
    assert answer.text == expected.text
