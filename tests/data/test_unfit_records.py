"""What a run leaves out besides broken records: what is too long, and what its teacher cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from linearize.data.llava_json import LlavaJsonConfig, LlavaJsonSource
from linearize.errors import DataError
from linearize.protocols.conversation import Conversation


def words(conversation: Conversation) -> int:
    """Stands for a teacher that refuses wide images and counts words."""
    for image in conversation.images:
        if image.width > 9:
            raise DataError(f"an image {image.width} wide is too wide for me")
    return sum(len(f"{turn.question} {turn.answer}".split()) for turn in conversation.turns)


def open_source(folder: Path, texts: list[str], **options: Any) -> LlavaJsonSource:
    path = folder / "records.jsonl"
    values = [
        {"id": str(number), "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]}
        | ({"image": text.removeprefix("<image>")} if text.startswith("<image>") else {})
        for number, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return LlavaJsonSource(LlavaJsonConfig(path=path, **options))


def test_a_conversation_that_is_too_long_gives_way_and_counts_apart_from_bad_ones(tmp_path: Path) -> None:
    source = open_source(tmp_path, ["a b", "a b c d", "a b c", "a b c d e"], max_tokens=4, max_bad=0)
    source.fit_to(words)
    assert [source[index].id for index in range(4)] == ["0", "2", "2", "0"]
    assert [(bad.line, bad.reason) for bad in source.bad_records()] == [
        (2, "too long: 5 tokens; data.max_tokens = 4"), (4, "too long: 6 tokens; data.max_tokens = 4"),
    ]  # fmt: skip


def test_nothing_that_is_short_enough_is_an_error(tmp_path: Path) -> None:
    source = open_source(tmp_path, ["a b", "a b c d"], max_tokens=1)
    source.fit_to(words)
    with pytest.raises(DataError, match=r"no record is left that can be used\.\n  line 1: too long: 3 tokens"):
        source[0]


def test_what_the_teacher_cannot_take_is_a_bad_record_with_its_reason(tmp_path: Path) -> None:
    Image.new("RGB", (10, 1)).save(tmp_path / "wide.png")
    source = open_source(tmp_path, ["<image>wide.png", "a"], max_bad=1)
    source.fit_to(words)
    assert source[0].id == "1"
    assert [bad.reason for bad in source.bad_records()] == ["not for this teacher: an image 10 wide is too wide for me"]
    source = open_source(tmp_path, ["<image>wide.png", "a"], max_bad=0)
    source.fit_to(words)
    with pytest.raises(DataError, match="at most 0 may be"):
        source[0]


def test_an_outline_decodes_no_image_and_leaves_out_the_same(tmp_path: Path) -> None:
    Image.effect_noise((8, 200), 50).save(tmp_path / "torn.png")
    content = (tmp_path / "torn.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    source = open_source(tmp_path, ["<image>torn.png", "a b c d", "a"], max_tokens=4, max_bad=1)
    source.fit_to(words)
    assert [(image.size, image.mode) for image in source.outline(0).images] == [((8, 200), "RGB")]
    assert source.outline(1).id == "2"
    assert [bad.fault for bad in source.bad_records()] == ["too long"]
    assert source[0].id == "2"
    assert [bad.fault for bad in source.bad_records()] == ["too long", "broken image"]
