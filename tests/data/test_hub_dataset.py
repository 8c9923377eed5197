"""Datasets of the datasets library as a data source, from folders, since nothing is loaded from the hub here."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from checkout import EXAMPLES
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.data.hub_dataset import HubDatasetConfig, HubDatasetSource
from linearize.errors import DataError
from linearize.protocols import DataSource
from linearize.protocols.conversation import Turn

EXAMPLE = EXAMPLES / "mmmamba_hovle.toml"
RED, BLUE = (Image.new("RGB", (4, 3), name) for name in ("red", "blue"))


def said(question: str, answer: str = "red") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(folder: Path, columns: dict[str, list[Any]]) -> Path:
    rows = datasets.Dataset.from_dict(columns)
    for name, feature in (("image", datasets.Image()), ("images", datasets.List(datasets.Image()))):
        if name in columns:
            rows = rows.cast_column(name, feature)
    rows.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def open_source(path: Path, **options: Any) -> HubDatasetSource:
    return HubDatasetSource(HubDatasetConfig(path=str(path), **options))


def test_rows_with_one_image_and_with_none_come_as_they_are(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"id": ["a", "b"], "image": [RED, None], "conversations": [said("<image>\nWhat?"), said("Hm?")]}
    )
    source: DataSource = open_source(path)
    assert source.size == 2
    assert source[0].turns == (Turn("<image>\nWhat?", "red"),)
    assert [image.getpixel((0, 0)) for image in source[0].images] == [(255, 0, 0)]
    assert (source[0].id, source[1].id, source[1].images) == ("a", "b", ())


def test_several_images_and_chat_keys_are_read_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<image><image>\nWhich?"}, {"role": "assistant", "content": "the second"}]
    source = open_source(write(tmp_path, {"images": [[RED, BLUE]], "messages": [messages]}))
    assert [image.getpixel((0, 0)) for image in source[0].images] == [(255, 0, 0), (0, 0, 255)]
    assert source[0].turns[0].answer == "the second"
    assert source[0].id == "row 0"


def test_a_question_and_an_answer_in_columns_of_their_own_make_a_turn(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": [RED], "q": ["What?"], "a": ["red"]})
    # One image and no mark: it is put in front, as for files.
    assert open_source(path, question="q", answer="a")[0].turns == (Turn("<image>\nWhat?", "red"),)


def test_messages_of_parts_and_pairs_of_user_and_assistant_are_read_too(tmp_path: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "red"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    written: tuple[dict[str, list[Any]], ...] = (
        {"messages": [messages]}, {"texts": [[{"user": "What?", "assistant": "red"}]]},
    )  # fmt: skip
    for number, columns in enumerate(written):
        (tmp_path / str(number)).mkdir()
        source = open_source(write(tmp_path / str(number), {"images": [[RED]], **columns}))
        assert source[0].turns == (Turn("<image>\nWhat?", "red"),)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"subset": "small"}, r"data\.subset = 'small' cannot"),
        ({"revision": "v1"}, r"data\.revision = 'v1' cannot"),
        ({"subset": "small", "revision": "v1"}, r"data\.subset = 'small' and data\.revision = 'v1' cannot"),
    ],
)
def test_a_saved_folder_refuses_what_only_the_hub_can_choose(
    tmp_path: Path, options: dict[str, str], named: str
) -> None:
    path = write(tmp_path, {"conversations": [said("Hm?")]})
    with pytest.raises(DataError, match=rf"{named} be chosen in .*saved: save_to_disk wrote.*Leave it out"):
        open_source(path, **options)


def test_a_folder_of_parquet_files_and_a_part_of_its_split_are_opened(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"conversations": [said(f"{number}?") for number in range(10)]})
    (tmp_path / "data").mkdir()
    rows.to_parquet(str(tmp_path / "data" / "train.parquet"))
    assert open_source(tmp_path / "data", split="train[:40%]").size == 4


def test_a_bad_row_gives_way_to_the_next_and_is_counted_once(tmp_path: Path) -> None:
    path = write(tmp_path, {"conversations": [said("one?"), said("<image>\nnone there?"), said("three?")]})
    source = open_source(path, max_bad=1)
    assert [source[1].id, source[1].id] == ["row 2", "row 2"]
    assert [(bad.line, bad.fault) for bad in source.bad_records()] == [(1, "wrong number of <image> marks")]
    with pytest.raises(DataError, match=r"1 of 3 rows are bad .*; at most 0 may be") as caught:
        open_source(path, max_bad=0)[1]
    # The first row has number 0, so that the second is no "line 2".
    assert "\n  row 1: wrong number of <image> marks" in str(caught.value)
    assert "\nMend or remove these rows, or raise data.max_bad" in str(caught.value)


def test_no_row_left_is_told_with_the_reasons(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {"conversations": [said("<image>\na?"), said("<image>\nb?")]}), max_bad=2)
    with pytest.raises(DataError, match=r"saved, train: no record is left that can be used\.\n  row 0: wrong number"):
        source[1]


def test_bytes_that_are_no_image_make_a_bad_row(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"image": [{"bytes": b"no image"}, None], "conversations": [said("a?"), said("b?")]}
    source = open_source(write(tmp_path, columns), max_bad=1)
    assert source[0].id == "row 1"
    assert [bad.fault for bad in source.bad_records()] == ["broken image"]


@pytest.mark.parametrize(
    ("raised", "fault"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "red.png"), "image not found"),
        (OSError("image file is truncated"), "broken image"),
        (SyntaxError("broken PNG file"), "broken image"),
    ],
)
def test_what_lies_with_an_image_makes_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, fault: str
) -> None:
    source = open_source(write(tmp_path, {"image": [RED, None], "conversations": [said("a?"), said("b?")]}), max_bad=1)
    monkeypatch.setattr(Image, "open", raising(raised))
    assert source[0].id == "row 1"
    assert [bad.fault for bad in source.bad_records()] == [fault]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_what_lies_with_the_machine_stops_the_run_instead_of_being_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = open_source(write(tmp_path, {"image": [None, RED], "conversations": [said("a?"), said("b?")]}), max_bad=1)
    monkeypatch.setattr(Image, "open", raising(OSError(number, "the reason")))
    with pytest.raises(
        DataError, match=r"saved, train, row 1: .* cannot be read: the reason\. Put that right and resume"
    ):
        source[1]
    assert source.bad_records() == []


def test_too_little_memory_stops_the_run_instead_of_being_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write(tmp_path, {"image": [RED, None], "conversations": [said("a?"), said("b?")]}), max_bad=1)
    monkeypatch.setattr(Image, "open", raising(MemoryError()))
    with pytest.raises(MemoryError):
        source[0]
    assert source.bad_records() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conversations": "talk"}, r"^conversations: there is no column 'talk'. .* has id, text"),
        ({}, r"has no column 'conversations' or 'messages' or 'texts'; it has id, text. Name the one"),
        ({"question": "text", "answer": "said"}, "^answer: there is no column 'said'. .* has id, text"),
        ({"question": "text", "answer": "id", "image": "picture"}, "^image: there is no column 'picture'"),
    ],
)
def test_a_missing_column_is_told_with_those_that_are_there(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path, {"id": ["a"], "text": ["b"]}), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "q"}, "question = 'q' is given without answer; name the column with the answer, too"),
        ({"answer": "a"}, "answer = 'a' is given without question; name the column with the question, too"),
        (
            {"conversations": "c", "question": "q", "answer": "a"},
            "conversations = 'c' is given beside question = 'q' and answer = 'a'; .* leave out the one or the other",
        ),
    ],
)
def test_turns_from_half_a_pair_or_from_two_places_are_refused_before_anything_is_opened(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        HubDatasetConfig(path="nowhere", **options)  # type: ignore[arg-type]
    changes = {"type": "hub_dataset", "path": "nowhere", **options}
    arguments = [part for key, value in changes.items() for part in ("--set", f"data.{key}={value}")]
    checked = CliRunner().invoke(app, ["check", str(EXAMPLE), *arguments])
    assert checked.exit_code == 1
    assert re.search(rf"^  - data: {message}", checked.stderr, flags=re.MULTILINE), checked.output


def test_a_folder_that_is_not_there_is_told_beside_what_the_hub_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ValueError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"no such folder in /.*\. As a hub id it cannot be read: ValueError: no such dataset"
    ):
        open_source(Path("pictures/nowhere"))


def test_what_is_no_dataset_is_told_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"could not be opened as split 'train': .*It takes a dataset's hub id"):
        open_source(tmp_path / "empty")
    both = datasets.DatasetDict({"test": datasets.Dataset.from_dict({"conversations": [said("a?")]})})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match=r"has no split 'train'; it has test\. Name what it has in data.split"):
        open_source(tmp_path / "both")
    with pytest.raises(DataError, match=r"no split 'test\[:10%\]'; it has test\. .* parts of a split, .* are for hub"):
        open_source(tmp_path / "both", split="test[:10%]")
    assert open_source(tmp_path / "both", split="test").size == 1


@pytest.mark.parametrize("name", [None, "validation"])
@pytest.mark.parametrize("asked", ["test", "train[:50%]"])
def test_a_saved_dataset_without_splits_gives_all_of_its_rows_or_refuses(
    tmp_path: Path, name: str | None, asked: str
) -> None:
    columns = {"conversations": [said("a?"), said("b?")]}
    split = datasets.NamedSplit(name) if name else None
    datasets.Dataset.from_dict(columns, split=split).save_to_disk(str(tmp_path / "saved"))
    for given in ("train", name or "train"):
        assert open_source(tmp_path / "saved", split=given).size == 2
    found = f"it has one split alone, '{name or 'train'}'. Name what it has in data.split; parts of a split"
    with pytest.raises(DataError, match=re.escape(f"saved has no split '{asked}'; {found}")):
        open_source(tmp_path / "saved", split=asked)
