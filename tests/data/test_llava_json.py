from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from linearize.data.llava_json import LlavaJsonConfig, LlavaJsonSource
from linearize.errors import DataError
from linearize.protocols import DataSource
from linearize.protocols.conversation import Turn


def record(number: int, image: str | list[str] | None = "red.png", question: str = "<image>\nWhat?") -> dict[str, Any]:
    value = {"id": number, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]}
    return value if image is None else {**value, "image": image}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    Image.new("RGB", (4, 3), "blue").save(tmp_path / "blue.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:50])
    (tmp_path / "text.png").write_text("not an image")
    return tmp_path


def write_lines(folder: Path, *values: object) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(value + "\n" if isinstance(value, str) else json.dumps(value) + "\n" for value in values))
    return path


def open_source(path: Path, **options: Any) -> LlavaJsonSource:
    return LlavaJsonSource(LlavaJsonConfig(path=path, **options))


def ids(source: LlavaJsonSource) -> list[str]:
    return [source[index].id for index in range(len(source))]


def test_records_with_one_several_and_no_images_come_as_they_are(folder: Path) -> None:
    path = write_lines(
        folder,
        record(1),
        record(2, ["red.png", "blue.png"], "<image><image>\nWhich is bluer?"),
        record(3, None, "How are you?"),
        record(4, [], "And now?"),
        record(5, "", "And then?"),
        {**record(6, None, "And at last?"), "image": None, "task": "chat", "width": 12},
    )
    source: DataSource = open_source(path, max_bad=0)
    assert source.size == 6
    one, two, three, four, five, six = (source[index] for index in range(6))
    assert one.turns == (Turn("<image>\nWhat?", "red"),)
    assert [image.getpixel((0, 0)) for image in one.images] == [(255, 0, 0)]
    assert [image.getpixel((0, 0)) for image in two.images] == [(255, 0, 0), (0, 0, 255)]
    assert three.images == four.images == five.images == six.images == ()
    assert (one.id, six.id, six.task) == ("1", "6", "chat")


def test_a_record_without_an_id_is_named_by_its_line(folder: Path) -> None:
    value = record(1)
    del value["id"]
    assert open_source(write_lines(folder, record(0), "", value))[1].id == "line 3"


def test_roles_and_contents_are_read_like_from_and_value(folder: Path) -> None:
    messages = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "red"}]
    path = write_lines(folder, record(1), {"images": ["red.png"], "conversations": messages})
    source = open_source(path, max_bad=0)
    assert source[0].turns == source[1].turns


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_an_array_gives_what_the_same_lines_give(folder: Path, indent: int | None, bom: bytes) -> None:
    values = [record(number, question=f"<image>\n{'é漢🙂' * number}?") for number in range(5)]
    lines = open_source(write_lines(folder, *values))
    path = folder / "records.json"
    path.write_bytes(bom + json.dumps(values, indent=indent, ensure_ascii=False).encode() + b"\n")
    array = open_source(path)
    assert [array[i].turns for i in range(5)] == [lines[i].turns for i in range(5)]
    assert len(array) == len(lines) == 5


def test_a_jsonl_file_may_start_with_a_byte_order_mark_and_end_without_a_line_break(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record(1)).encode() + b"\r\n" + json.dumps(record(2)).encode())
    assert ids(open_source(path, max_bad=0)) == ["1", "2"]


@pytest.mark.parametrize("indent", [None, 1])
def test_each_bad_record_of_an_array_counts_for_itself_also_where_all_share_a_line(
    folder: Path, indent: int | None
) -> None:
    path = folder / "records.json"
    values = [record(1), record(2, "gone.png"), record(3, "torn.png"), record(4, "gone.png"), record(5)]
    path.write_text(json.dumps(values, indent=indent))
    source = open_source(path, max_bad=3)
    assert ids(source) == ["1", "5", "5"]  # the torn image turns up when it is decoded, and costs its record alone
    assert [(bad.unit, bad.line, bad.fault) for bad in source.bad_records()] == [
        ("record", 2, "image not found"),
        ("record", 4, "image not found"),
        ("record", 3, "broken image"),
    ]
    with pytest.raises(DataError, match=r"2 of 5 records are bad .*\n  record 2: image not found"):
        open_source(path, max_bad=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},\n {"id": 2]', r"records.json, line 2, column 10: Expecting ',' delimiter"),
        ('[{"id": 1}\n {"id": 2}]', "line 2, column 2: expected ',' or ']'"),
        ('[{"id": 1},\n', "line 2, column 1: Expecting value"),
        ('[{"id": 1},]', "column 12: Expecting value"),
        ("[\n] {}", "line 2, column 3: something follows the array"),
        ("[", "Expecting value"),
    ],
)
def test_a_malformed_array_is_refused_by_line_and_column(folder: Path, text: str, message: str) -> None:
    path = folder / "records.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_source(path)
    assert "store one record per line" in str(caught.value)


def test_a_bad_record_is_named_and_skipped_up_to_the_limit_and_refused_beyond(folder: Path) -> None:
    path = write_lines(folder, record(0), record(1, "gone.png"), record(2))
    source = open_source(path, max_bad=1)
    assert ids(source) == ["0", "2"]
    assert [(bad.line, bad.reason) for bad in source.bad_records()] == [(2, "image not found: gone.png")]
    assert "1 of 3 records are bad" in source.summary()
    with pytest.raises(DataError) as caught:
        open_source(path, max_bad=0)
    assert "line 2: image not found: gone.png" in str(caught.value)
    assert "at most 0 may be (data.max_bad = 0)" in str(caught.value)


def test_a_line_that_is_not_utf8_is_one_bad_record(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(json.dumps(record(1)).encode() + b'\n{"id": "\xff"}\n')
    [bad] = open_source(path, max_bad=1).bad_records()
    assert (bad.line, bad.reason) == (2, "malformed JSON: byte 9 of the line is not UTF-8")


def test_beyond_the_limit_the_first_few_are_named_and_the_kinds_counted(folder: Path) -> None:
    path = write_lines(folder, *(record(i, "gone.png") for i in range(7)), "{", *(record(i) for i in range(8)))
    with pytest.raises(DataError) as caught:
        open_source(path, max_bad=0.25)
    text = str(caught.value)
    assert "8 of 16 records are bad (7 image not found, 1 malformed JSON); at most 4 may be" in text
    assert text.count("line ") == 5
    assert "line 5: image not found: gone.png" in text
    assert "... and 3 more" in text
    assert f"Image names are relative to {folder} (data.images)" in text
    assert "raise data.max_bad" in text


@pytest.mark.parametrize(("max_bad", "limit"), [(0, 0), (3, 3), (0.0, 0), (0.01, 1), (0.29, 29)])
def test_a_limit_is_a_count_or_a_share(folder: Path, max_bad: float, limit: int) -> None:
    bad = [record(number, "gone.png") for number in range(limit)]
    good = [record(number) for number in range(100 - limit)]
    assert len(open_source(write_lines(folder, *bad, *good), max_bad=max_bad)) == 100 - limit
    path = write_lines(folder, *bad, record(-1, "gone.png"), *good[1:])
    with pytest.raises(DataError, match=f"at most {limit} may be"):
        open_source(path, max_bad=max_bad)


@pytest.mark.parametrize("max_bad", [-1, 1.0, True, -0.5, "many"])
def test_a_senseless_limit_is_refused(folder: Path, max_bad: object) -> None:
    with pytest.raises(ValidationError, match="max_bad"):
        LlavaJsonConfig(path=folder, max_bad=max_bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", ["torn.png", "text.png"])
def test_a_broken_image_gives_way_to_the_next_good_record_and_counts_once(folder: Path, broken: str) -> None:
    path = write_lines(folder, record(0), record(1, broken), record(2, broken), record(3))
    source = open_source(path, max_bad=2)
    assert source.size == 4
    for _ in range(2):
        assert ids(source) == ["0", "3", "3", "3"]
    assert source.size == 4
    assert [bad.line for bad in source.bad_records()] == [2, 3]
    assert all(bad.fault == "broken image" and broken in bad.reason for bad in source.bad_records())


def test_what_an_index_gives_does_not_depend_on_what_was_read_before(folder: Path) -> None:
    path = write_lines(folder, record(0), record(1, "torn.png"), record(2), record(3, "torn.png"))
    whole = ids(open_source(path, max_bad=2))
    assert whole == ["0", "2", "2", "0"]
    for index in range(4):
        assert open_source(path, max_bad=2)[index].id == whole[index]


def test_broken_images_and_bad_records_count_towards_one_limit(folder: Path) -> None:
    source = open_source(write_lines(folder, "{", record(1), record(2, "torn.png"), record(3)), max_bad=1)
    assert source[0].id == "1"
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 4 records are bad .*; at most 1 may be") as caught:
            source[1]
        assert "line 3: broken image" in str(caught.value)


def test_an_image_that_vanishes_is_a_bad_record(folder: Path) -> None:
    source = open_source(write_lines(folder, record(0), record(1, "blue.png")), max_bad=1)
    (folder / "blue.png").unlink()
    assert source[1].id == "0"
    assert [bad.fault for bad in source.bad_records()] == ["image not found"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_image_that_may_not_be_read_stops_the_run_instead_of_being_skipped(folder: Path) -> None:
    source = open_source(write_lines(folder, record(0), record(1, "blue.png")), max_bad=2)
    (folder / "blue.png").chmod(0)
    with pytest.raises(DataError, match=r"blue.png cannot be read: Permission denied"):
        source[1]


def test_a_disk_error_stops_the_run_instead_of_being_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_lines(folder, record(0), record(1)), max_bad=2)

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match=r"red.png cannot be read: Input/output error\. Put that right and resume"):
        source[0]
    assert source.bad_records() == []


def test_no_record_left_with_a_readable_image_is_an_error(folder: Path) -> None:
    source = open_source(write_lines(folder, record(0, "torn.png"), record(1, "text.png")), max_bad=9)
    with pytest.raises(DataError, match="no record is left that can be used"):
        source[0]


def test_a_missing_mark_of_the_only_image_is_put_in_front(folder: Path) -> None:
    source = open_source(write_lines(folder, record(0, question="What?"), record(1)), max_bad=0)
    assert source[0].turns[0].question == "<image>\nWhat?"
    assert source.num_marks_added == 1
    assert "<image> put in front of the first question of 1" in source.summary()


@pytest.mark.parametrize("place", ["key", "message"])
def test_a_system_message_is_prepended_or_dropped_on_request(folder: Path, place: str) -> None:
    value = record(0, question="What?")
    if place == "key":
        value["system"] = "Be kind."
    else:
        value["conversations"].insert(0, {"from": "system", "value": "Be kind."})
    path = write_lines(folder, value)
    assert open_source(path, system="prepend")[0].turns[0].question == "<image>\nBe kind.\n\nWhat?"
    assert open_source(path, system="drop")[0].turns[0].question == "<image>\nWhat?"


def test_images_may_lie_in_a_folder_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "data").mkdir()
    path = write_lines(folder / "data", record(0), record(1, str(folder / "blue.png")))
    source = open_source(path, images=folder)
    assert source[1].images[0].getpixel((0, 0)) == (0, 0, 255)
    monkeypatch.chdir(folder)
    assert ids(open_source(Path("data/records.jsonl"), images=Path("."))) == ["0", "1"]


def test_paths_that_lead_nowhere_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^path: '.*none.jsonl' cannot be read: No such file or directory\.$"):
        open_source(folder / "none.jsonl")
    (folder / "records.jsonl").touch()
    with pytest.raises(DataError, match=r"No such file or directory\. Did you mean '.*/records\.jsonl'\?$"):
        open_source(folder / "record.jsonl")
    with pytest.raises(DataError, match=r"^path: .* Did you mean '.*/records\.jsonl'\?$"):
        open_source(folder.with_name(f"{folder.name}s") / "records.jsonl")
    with pytest.raises(DataError, match=r"path: '.*' cannot be read: Is a directory"):
        open_source(folder)
    with pytest.raises(DataError, match=r"images: there is no folder '.*none'\. Name the one"):
        open_source(write_lines(folder, record(0)), images=folder / "none")
    with pytest.raises(
        DataError, match=r"^path: '.*none.jsonl' cannot .* And data.images: there is no folder '.*none'"
    ):
        open_source(folder / "none.jsonl", images=folder / "none")


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_a_file_without_records_is_refused_with_the_format(folder: Path, text: str) -> None:
    path = folder / "records.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"holds no record\. A JSONL file holds one record per line"):
        open_source(path)


def test_one_record_spread_over_lines_is_refused_with_the_format(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_text(json.dumps(record(0), indent=2))
    for max_bad in (0, 100):
        with pytest.raises(DataError, match="A JSONL file holds one record per line, a JSON file one array"):
            open_source(path, max_bad=max_bad)


def test_a_file_that_changes_under_a_run_stops_it(folder: Path) -> None:
    path = write_lines(folder, record(0), record(1))
    source = open_source(path)
    write_lines(folder, record(0, question="<image>\nA longer question than before?"), record(1))
    with pytest.raises(DataError, match="line 2, was good when the file was opened and is not now"):
        source[1]


def test_an_index_outside_the_file_is_refused(folder: Path) -> None:
    source = open_source(write_lines(folder, record(0)))
    for index in (-1, 1):
        with pytest.raises(IndexError, match=f"conversation {index} asked for, .* has 1"):
            source[index]
