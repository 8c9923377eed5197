"""What becomes of a conversation that is too long, when the recipe wants what fits of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from linearize.data.bad_record_file import BadRecordFile, left_out, read_bad_records
from linearize.data.llava_json import LlavaJsonConfig, LlavaJsonSource
from linearize.data.shorten import shorten
from linearize.protocols.conversation import Conversation, Turn

PICTURE = Image.new("RGB", (4, 4))


def words(conversation: Conversation) -> int:
    """Counts words, and ten for an image."""
    asked = (f"{turn.question} {turn.answer}".replace("<image>", "") for turn in conversation.turns)
    return sum(len(text.split()) for text in asked) + 10 * len(conversation.images)


def of(*turns: tuple[str, str], images: int = 0) -> Conversation:
    return Conversation(tuple(Turn(*turn) for turn in turns), (PICTURE,) * images, id="x", task="t")


LONG = of(("<image> a b", "c"), ("d <image>", "e f"), ("g", "h i j"), images=2)


@pytest.mark.parametrize(
    ("limit", "num_turns", "num_images"), [(30, 3, 2), (29, 2, 2), (26, 2, 2), (25, 1, 1), (13, 1, 1)]
)
def test_as_many_first_turns_are_kept_as_fit_with_their_images(limit: int, num_turns: int, num_images: int) -> None:
    assert words(LONG) == 30
    cut = LONG if limit == 30 else shorten(LONG, words, limit)
    assert cut is not None
    assert cut.turns == LONG.turns[:num_turns]
    assert len(cut.images) == num_images == cut.num_image_marks()
    assert (cut.id, cut.task) == ("x", "t")


def test_of_one_turn_as_many_words_of_the_answer_are_kept_as_fit() -> None:
    one = of(("a b", " c  d\ne f "), ("g", "h"))
    assert [shorten(one, words, limit) and shorten(one, words, limit).turns for limit in (3, 4, 5)] == [  # type: ignore[union-attr]
        (Turn("a b", " c"),), (Turn("a b", " c  d"),), (Turn("a b", " c  d\ne"),)
    ]  # fmt: skip


def test_a_question_is_never_cut() -> None:
    assert shorten(of(("a b c", "d e")), words, 3) is None
    assert shorten(of(("a", "d e"), images=1), words, 11) is None
    assert shorten(of(("a", "d e"), images=1), words, 12) == of(("a", "d"), images=1)


@pytest.fixture
def source(tmp_path: Path) -> LlavaJsonSource:
    texts = [("a b c", "d e"), ("a", "b c d e f"), ("a", "b")]
    lines = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        for question, answer in texts
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options: dict[str, Any] = {"max_tokens": 3, "too_long": "truncate", "max_bad": 0}
    source = LlavaJsonSource(LlavaJsonConfig(path=tmp_path / "records.jsonl", **options))
    source.fit_to(words)
    return source


def test_a_record_that_was_cut_is_used_and_named_apart_from_those_left_out(
    source: LlavaJsonSource, tmp_path: Path
) -> None:
    for _ in range(2):
        assert [source[index].turns[0].answer for index in range(3)] == ["b c", "b c", "b"]
    assert [(bad.line, bad.left_out, bad.reason) for bad in source.bad_records()] == [
        (1, True, "too long: 5 tokens; data.max_tokens = 3"),
        (2, False, "6 tokens cut to 3; data.max_tokens = 3"),
    ]
    assert "1 of 3 records are bad (1 too long)" in source.summary()
    said = left_out(source)
    assert "records.jsonl: 1 record skipped (1 too long) and 1 record cut short\n  line 1: too long" in said
    assert "\n  line 2: 6 tokens cut to 3" in said
    BadRecordFile(tmp_path / "run").follow(source)
    assert [line.get("left_out", True) for line in read_bad_records(tmp_path / "run")] == [True, False]
