"""A record that only the making of a batch shows to be none for this teacher gives way like any other bad one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from linearize.data.bad_record_file import BadRecordFile, read_bad_records
from linearize.data.llava_json import LlavaJsonConfig, LlavaJsonSource
from linearize.data.samples import SampleReader
from linearize.data.unfit import UnfitRecords
from linearize.errors import DataError
from linearize.protocols import Batch, Conversation


class Picky:
    """Counts words; ``batch`` refuses conversations of these names, and more than ``most`` at once."""

    def __init__(self, *refused: str, most: int = 9) -> None:
        self.refused, self.most, self.num_batches = refused, most, 0

    def num_tokens(self, conversation: Conversation) -> int:
        return len(conversation.turns[0].question.split())

    def batch(self, conversations: Sequence[Conversation]) -> Batch:
        self.num_batches += 1
        if len(conversations) > self.most:
            raise DataError("too many at once")
        for one in conversations:
            if one.id in self.refused:
                raise DataError(f"what a processor makes of '{one.id}' is nothing")
        ids_BT = torch.tensor([[int(one.id)] for one in conversations])
        return Batch({"input_ids": ids_BT}, ids_BT.bool(), ids_BT.byte())


def records(folder: Path, count: int, **options: Any) -> LlavaJsonSource:
    path = folder / "records.jsonl"
    lines = [
        {"id": str(number), "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return LlavaJsonSource(LlavaJsonConfig(path=path, **options))


class Training:
    """Draws samples and makes a batch of them, over and over."""

    def __init__(self, adapter: Picky, source: Any) -> None:
        self.reader, self.source = SampleReader(adapter), source  # type: ignore[arg-type]
        self.unfit = UnfitRecords(self.reader, source)

    def batch(self, *indices: int) -> list[int]:
        batch = self.unfit.give_way(lambda: [self.source[index] for index in indices], self.reader.batch)
        ids: list[int] = batch.inputs["input_ids"].flatten().tolist()
        return ids


def test_what_batch_alone_refuses_gives_way_to_the_next_and_is_counted_once_with_its_reason(tmp_path: Path) -> None:
    source = records(tmp_path, 6, max_bad=2)
    training = Training(Picky("1", "4"), source)
    assert training.batch(0, 1) == [0, 2]
    assert training.batch(2, 3, 4) == [2, 3, 5]
    assert [(bad.line, bad.fault, bad.reason, bad.counts) for bad in source.bad_records()] == [
        (2, "not for this teacher", "not for this teacher: what a processor makes of '1' is nothing", True),
        (5, "not for this teacher", "not for this teacher: what a processor makes of '4' is nothing", True),
    ]
    assert training.batch(1) == [2]
    assert len(source.bad_records()) == 2


def test_one_that_gives_way_to_another_that_is_refused_gives_way_again(tmp_path: Path) -> None:
    source = records(tmp_path, 4, max_bad=2)
    assert Training(Picky("1", "2"), source).batch(1) == [3]


def test_more_of_them_than_the_limit_end_the_run_with_their_names(tmp_path: Path) -> None:
    source = records(tmp_path, 4, max_bad=1)
    with pytest.raises(DataError, match=r"at most 1 may be \(data\.max_bad = 1\)\.\n  line 2: not for this teacher: "):
        Training(Picky("1", "2"), source).batch(1, 2)


def test_sound_conversations_are_looked_at_together_alone(tmp_path: Path) -> None:
    source, adapter = records(tmp_path, 4), Picky()
    Training(adapter, source).batch(0, 1, 2)
    assert adapter.num_batches == 1


def test_a_batch_that_is_refused_though_each_of_it_is_taken_is_an_error(tmp_path: Path) -> None:
    source = records(tmp_path, 4)
    with pytest.raises(DataError, match="too many at once"):
        Training(Picky(most=1), source).batch(0, 1)
    assert list(source.bad_records()) == []


@pytest.mark.parametrize("leaves_out", [False, True])
def test_a_source_that_goes_on_giving_what_is_refused_is_answered_with_the_reason(leaves_out: bool) -> None:
    """One that keeps no account, or that does not ask what fits."""

    class Stubborn:
        size = 2

        def __getitem__(self, index: int) -> Conversation:
            return Conversation((), id=str(index))

    class Deaf(Stubborn):
        def fit_to(self, num_tokens: Any) -> None: ...
        def outline(self, index: int) -> Conversation:
            return self[index]

        def bad_records(self) -> list[Any]:
            return []

    source = Deaf() if leaves_out else Stubborn()
    with pytest.raises(DataError, match="what a processor makes of '1' is nothing"):
        Training(Picky("1"), source).batch(0, 1)


def test_one_that_differs_from_a_refused_one_in_pixels_alone_is_taken_whatever_was_drawn_before(tmp_path: Path) -> None:
    """Else a resumed run, which has not drawn the refused one again, would take what the other run left out."""

    class WantsLight(Picky):
        def batch(self, conversations: Sequence[Conversation]) -> Batch:
            if any(image.getpixel((0, 0)) == (0, 0, 0) for one in conversations for image in one.images):
                raise DataError("too dark")
            return super().batch(conversations)

    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "that"}]
    for name, color in (("dark", "black"), ("light", "white")):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
    values = [{"id": str(at), "image": f"{name}.png", "conversations": turns}
              for at, name in ((7, "dark"), (7, "light"), (8, "light"))]  # fmt: skip
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")

    def training() -> Training:
        return Training(WantsLight(), LlavaJsonSource(LlavaJsonConfig(path=path, max_bad=1)))

    killed, left_alone = training(), training()
    assert left_alone.batch(0) == [7]
    assert killed.batch(1, 2) == left_alone.batch(1, 2) == [7, 8]


def test_one_that_is_cut_and_then_refused_counts_as_bad_in_the_account_and_the_file(tmp_path: Path) -> None:
    def shortened(max_bad: int) -> LlavaJsonSource:
        turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]
        path = tmp_path / "records.jsonl"
        lines = [{"id": str(number), "conversations": turns * (2 - number)} for number in range(2)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return LlavaJsonSource(LlavaJsonConfig(path=path, max_tokens=1, too_long="truncate", max_bad=max_bad))

    class CountsTurns(Picky):
        def num_tokens(self, conversation: Conversation) -> int:
            return len(conversation.turns)

    source = shortened(max_bad=1)
    file = BadRecordFile(tmp_path)
    training = Training(CountsTurns("0"), source)
    assert source[0].id == "0"
    file.follow(source)
    assert training.batch(0) == [1]
    file.follow(source)
    assert [(bad.line, bad.fault, bad.left_out) for bad in source.bad_records()] == [
        (1, "cut short", False), (1, "not for this teacher", True),
    ]  # fmt: skip
    assert [line["fault"] for line in read_bad_records(tmp_path)] == ["not for this teacher"]
    with pytest.raises(DataError, match="at most 0 may be"):
        Training(CountsTurns("0"), shortened(max_bad=0)).batch(0)
