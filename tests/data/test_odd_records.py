"""Records as people write them: files and tables accept the same ones, and refuse the others for the same reasons."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from linearize.data.hub_dataset import HubDatasetConfig, HubDatasetSource
from linearize.data.llava_json import LlavaJsonConfig, LlavaJsonSource
from linearize.data.record_source import RecordSource
from linearize.errors import DataError
from linearize.protocols.conversation import Conversation, Turn

BUFFER = io.BytesIO()
Image.new("RGB", (4, 3), "red").save(BUFFER, "PNG")
PNG = BUFFER.getvalue()
BASE64 = base64.b64encode(PNG).decode()
DATA_URI = f"data:image/png;base64,{BASE64}"

ASKED = (Turn("<image>\nWhat?", "red"),)
PLAIN = (Turn("What?", "red"),)
QUESTION, ANSWER = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}
SAID = [QUESTION, ANSWER]
PICTURE, WORDS = {"type": "image"}, {"type": "text", "text": "What?"}


def chat(content: Any, answer: Any = "red") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


GOOD: dict[str, tuple[Any, tuple[Turn, ...], int]] = {
    "a name": ({"image": "red.png", "conversations": SAID}, ASKED, 1),
    "a list of names": ({"images": ["red.png"], "conversations": SAID}, ASKED, 1),
    "no name": ({"image": "", "conversations": SAID}, PLAIN, 0),
    "a null name": ({"image": None, "conversations": SAID}, PLAIN, 0),
    "both names, one of them null": ({"image": None, "images": ["red.png"], "conversations": SAID}, ASKED, 1),
    "a data URI": ({"image": DATA_URI, "conversations": SAID}, ASKED, 1),
    "an object with a path": ({"image": {"bytes": None, "path": "red.png"}, "conversations": SAID}, ASKED, 1),
    "messages": ({"messages": chat("What?")}, PLAIN, 0),
    "texts": ({"texts": [{"user": "What?", "assistant": "red"}]}, PLAIN, 0),
    "columns of messages": ({"messages": {"role": ["user", "assistant"], "content": ["What?", "red"]}}, PLAIN, 0),
    "parts": ({"image": "red.png", "messages": chat([PICTURE, WORDS], [{"type": "text", "text": "red"}])}, ASKED, 1),
    "a part that names its image": (
        {"messages": chat([{"type": "image", "image": "red.png"}, WORDS], [{"type": "text", "text": "red"}])}, ASKED, 1,
    ),
    "a part with an image URL": (
        {"messages": chat([{"type": "image_url", "image_url": {"url": DATA_URI}}, WORDS])}, ASKED, 1,
    ),
    "names of roles in any case": (
        {"conversations": [{"from": "Human", "value": "What?"}, {"from": "GPT", "value": "red"}]}, PLAIN, 0,
    ),
    "roles in any case": (
        {"messages": [{"role": "USER", "content": "What?"}, {"role": " Assistant", "content": "red"}]}, PLAIN, 0,
    ),
    "a null video": ({"video": None, "conversations": SAID}, PLAIN, 0),
    "no videos": ({"videos": [], "audio": "", "conversations": SAID}, PLAIN, 0),
    "a whole number": ({"conversations": [QUESTION, {"from": "gpt", "value": 3}]}, (Turn("What?", "3"),), 0),
    "a number": ({"conversations": [QUESTION, {"from": "gpt", "value": 0.5}]}, (Turn("What?", "0.5"),), 0),
    "several answers": (
        {"conversations": [QUESTION, {"from": "gpt", "value": ["blue", "red", "red"]}]}, PLAIN, 0,
    ),
    "as many of each answer": (
        {"conversations": [QUESTION, {"from": "gpt", "value": ["red", "blue"]}]}, PLAIN, 0,
    ),
    "a key that is no matter": ({"width": 12, "conversations": SAID}, PLAIN, 0),
    "marks of a teacher": (
        {"conversations": [{"from": "human", "value": "<IMG_CONTEXT><|im_end|>?"}, ANSWER]},
        (Turn("<IMG_CONTEXT><|im_end|>?", "red"),), 0,
    ),
    "carriage returns": (
        {"conversations": [{"from": "human", "value": "What\r\nis it?"}, ANSWER]}, (Turn("What\r\nis it?", "red"),), 0,
    ),
}  # fmt: skip

BAD: dict[str, tuple[Any, str]] = {
    "a list": ([1], "not a record: expected a JSON object, got list"),
    "nothing": ({"id": "1"}, "not a record: it has no list 'conversations' or 'messages'"),
    "null messages": ({"id": "1", "messages": None}, "not a record: it has no list 'conversations' or 'messages'"),
    "a text as messages": ({"messages": "What?"}, "not a record: 'messages' is str; expected a list of messages"),
    "messages twice": (
        {"conversations": SAID, "messages": chat("?")}, "not a record: it has both 'conversations' and 'messages'"),
    "no message": ({"conversations": []}, "no turns: there is no question"),
    "a number as message": ({"conversations": [3]}, "not a record: message 1 is not an object"),
    "no such file": ({"image": "gone.png", "conversations": SAID}, "image not found: gone.png"),
    "a folder": ({"image": ".", "conversations": SAID}, "image not found: ."),
    "a file as folder": ({"image": "red.png/red.png", "conversations": SAID}, "image not found: red.png/red.png"),
    "a name over 255 bytes": (
        {"image": "é" * 140, "conversations": SAID}, f"image not found: {'é' * 140}"),
    "bare base64": ({"image": BASE64 * 99, "conversations": SAID}, f"image not found: {(BASE64 * 99)[:300]}... ("),
    "a name with a zero": ({"image": "red\0.png", "conversations": SAID}, "image not found: red\0.png"),
    "a URL": (
        {"image": "https://example.org/a.png", "conversations": SAID},
        "image in no file: https://example.org/a.png: of URLs only base64 data URIs are read"),
    "a data URI without base64": (
        {"image": "data:image/svg+xml,<svg/>", "conversations": SAID}, "image in no file: data:image/svg+xml,<svg/>"),
    "a damaged data URI": (
        {"image": DATA_URI[:-5] + "*", "conversations": SAID}, "broken image: a data URI whose base64 is damaged"),
    "a data URI of no image": (
        {"image": "data:image/png;base64,aGVsbG8=", "conversations": SAID},
        "broken image: a data URI is in no image format that Pillow knows"),
    "a number as image": (
        {"image": 3, "conversations": SAID}, "not a record: 'image' is neither a file name nor a list of file names"),
    "no image in a list of two": (
        {"image": ["red.png", None], "conversations": SAID},
        "not a record: 'image' is neither a file name nor a list of file names"),
    "images twice": (
        {"image": "red.png", "images": ["red.png"], "conversations": SAID}, "not a record: it has both 'image' and"),
    "images by key and in parts": (
        {"image": "red.png", "messages": chat([{"type": "image", "image": "red.png"}, WORDS])},
        "not a record: it names images both by a key and in its messages"),
    "a mark without image": (
        {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, ANSWER]},
        "wrong number of <image> marks: 1 in the questions for 0 images; each one in a question stands for an image"),
    "a mark for two images": (
        {"image": ["red.png"] * 2, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ANSWER]},
        "wrong number of <image> marks: 1 in the questions for 2 images"),
    "no mark for two images": (
        {"image": ["red.png"] * 2, "conversations": SAID},
        "wrong number of <image> marks: 0 in the questions for 2 images"),
    "a mark in an answer": (
        {"conversations": [QUESTION, {"from": "gpt", "value": "<image>"}]},
        "wrong number of <image> marks: answer 1 holds one; only questions may"),
    "an image in an answer": (
        {"image": "red.png", "messages": chat("What?", [PICTURE])}, "wrong number of <image> marks: answer 1"),
    "a video": ({"video": "a.mp4", "conversations": SAID}, "not a record: 'video' is not empty; only images"),
    "sounds": ({"audios": ["a.wav"], "conversations": SAID}, "not a record: 'audios' is not empty; only images"),
    "a video as a part": (
        {"messages": chat([{"type": "video"}, WORDS])}, "not a record: message 1 holds {'type': 'video'"),
    "a system message": (
        {"system": "Be kind.", "conversations": SAID}, "system message: the teacher's prompt has its own"),
    "a later system message": (
        {"conversations": [*SAID, {"from": "system", "value": "Be kind."}]},
        "turns out of order: message 3 is from system; expected human"),
    "an answer first": (
        {"conversations": [ANSWER]}, "turns out of order: message 1 is from gpt; expected human"),
    "two questions": (
        {"conversations": [QUESTION] * 2}, "turns out of order: message 2 is from human; expected gpt"),
    "no answer": ({"conversations": [QUESTION]}, "turns out of order: the last question has no answer"),
    "another speaker": (
        {"conversations": [{"from": "tool", "value": "red"}]},
        "not a record: message 1 is from 'tool'; expected 'human' or 'gpt'"),
    "several questions": (
        {"conversations": [{"from": "human", "value": ["What?"]}, {"from": "gpt", "value": ["red"]}]},
        "not a record: message 1 has no text in 'value' or 'content'"),
    "a null text": (
        {"conversations": [QUESTION, {"from": "gpt", "value": None}]},
        "not a record: message 2 has no text in 'value' or 'content'"),
    "a truth as text": (
        {"conversations": [QUESTION, {"from": "gpt", "value": True}]},
        "not a record: message 2 has no text in 'value' or 'content'"),
    "an empty answer": ({"conversations": [QUESTION, {"from": "gpt", "value": ""}]}, "empty text: answer 1 is empty"),
    "half a character": (
        {"conversations": [{"from": "human", "value": "ab\ud83d"}, ANSWER]},
        r"broken text: message 1 holds half a character, \ud83d, at 3"),
    "half a character in a name": (
        {"image": "\udc00.png", "conversations": SAID}, r"broken text: 'image' holds half a character, \udc00, at 1"),
    "half a character in an id": (
        {"id": "\ud83d", "conversations": SAID}, r"broken text: 'id' holds half a character, \ud83d, at 1"),
}  # fmt: skip

NOT_IN_TABLES = frozenset({
    "a list", "a part with an image URL", "a number", "a whole number", "several answers", "as many of each answer",
    "images by key and in parts", "a video as a part", "an image in an answer", "a truth as text",
    "half a character", "half a character in a name", "half a character in an id",
})  # fmt: skip
"""Records that no table can hold: one column has one type, and its texts are UTF-8."""


@pytest.fixture(autouse=True)
def picture(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(PNG)


def from_file(folder: Path, value: Any) -> RecordSource:
    path = folder / "records.jsonl"
    path.write_text(json.dumps({"conversations": SAID}) + "\n" + json.dumps(value) + "\n")
    return LlavaJsonSource(LlavaJsonConfig(path=path, max_bad=1))


def from_table(folder: Path, value: Any) -> RecordSource:
    """The record as a table of one row, behind which a good one follows."""
    one = datasets.Dataset.from_list([value])
    other = datasets.Dataset.from_list([{"conversations": SAID}])
    if "conversations" in one.column_names and one.features["conversations"] != other.features["conversations"]:
        other = datasets.Dataset.from_list([{"texts": [{"user": "What?", "assistant": "red"}]}])
    datasets.concatenate_datasets([other, one]).save_to_disk(str(folder / "saved"))
    return HubDatasetSource(HubDatasetConfig(path=str(folder / "saved"), images=folder, max_bad=1))


VALUES: dict[str, Any] = {name: entry[0] for name, entry in (*GOOD.items(), *BAD.items())}
WAYS = {"file": from_file, "table": from_table}
CASES = [(way, name) for name in (*GOOD, *BAD) for way in WAYS if way == "file" or name not in NOT_IN_TABLES]


@pytest.mark.parametrize(("way", "name"), CASES, ids=[f"{name}-{way}" for way, name in CASES])
def test_an_odd_record_is_read_or_refused_alike_wherever_it_comes_from(tmp_path: Path, way: str, name: str) -> None:
    source = WAYS[way](tmp_path, VALUES[name])
    found: Conversation = source[len(source) - 1]
    if name in GOOD:
        assert source.bad_records() == []
        assert (found.turns, len(found.images)) == GOOD[name][1:]
        assert all(image.getpixel((0, 0)) == (255, 0, 0) for image in found.images)
        return
    [bad] = source.bad_records()
    assert bad.reason.startswith(BAD[name][1])
    assert bad.line == (2 if way == "file" else 1)
    assert found.turns == PLAIN


def without_nulls(value: Any) -> Any:
    """Rows of a table have all keys that any row has."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_tables_hold_the_records_that_they_are_tried_with_and_no_others(tmp_path: Path, name: str) -> None:
    value = VALUES[name]
    try:
        source = from_table(tmp_path, value)
        holds = without_nulls(source._value(1)) == without_nulls(value)
    except (TypeError, ValueError, AttributeError):  # pyarrow's errors among them
        holds = False
    assert holds == (name not in NOT_IN_TABLES)


def test_a_line_that_is_not_utf8_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps({"conversations": SAID}).encode()
    path.write_bytes(good + b'\n{"id": "\xff"}\r\n' + good + b"\r\n")
    source = LlavaJsonSource(LlavaJsonConfig(path=path, max_bad=1))
    assert len(source) == 2
    assert [(bad.line, bad.reason) for bad in source.bad_records()] == [
        (2, "malformed JSON: byte 9 of the line is not UTF-8")
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("is_array", [False, True])
def test_a_file_in_another_unicode_is_refused_with_its_name(tmp_path: Path, encoding: str, is_array: bool) -> None:
    path = tmp_path / "records.json"
    value = {"conversations": SAID}
    path.write_bytes(json.dumps([value] if is_array else value).encode(encoding))
    with pytest.raises(DataError, match=rf"is in {encoding[:6].upper()}.*; expected UTF-8\. Convert it: iconv -f UTF-"):
        LlavaJsonSource(LlavaJsonConfig(path=path))


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000 + "]"])
def test_json_that_is_too_much_for_its_reader_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "records.json").write_text(text)
    with pytest.raises(DataError, match=r"records.json, the record after line 1: .*store one record per line"):
        LlavaJsonSource(LlavaJsonConfig(path=tmp_path / "records.json"))


def test_a_column_of_images_is_read_by_the_rules_for_files(tmp_path: Path) -> None:
    """Of 16 bits, and lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint16) * 257, (2, 1)))
    ramp.save(tmp_path / "ramp.png", exif=exif)
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "ramp.png")], "conversations": [SAID]})
    rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"image": "ramp.png", "conversations": SAID}))
    for turns in (True, False):
        table = HubDatasetSource(HubDatasetConfig(path=str(tmp_path / "saved"), exif_rotation=turns))
        file = LlavaJsonSource(LlavaJsonConfig(path=path, exif_rotation=turns))
        [one], [other] = table[0].images, file[0].images
        assert one.size == other.size == ((2, 256) if turns else (256, 2))
        assert one.tobytes() == other.tobytes()
        assert sorted(set(one.tobytes())) == list(range(256))
        assert table.outline(0).images[0].size == file.outline(0).images[0].size == one.size


def test_keys_of_files_are_named_as_columns_are(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"q": "What?", "a": ["red", "red", "blue"], "photo": "red.png", "messages": "other"}))
    source = LlavaJsonSource(LlavaJsonConfig(path=path, question="q", answer="a", image="photo"))
    assert source[0].turns == ASKED
    assert len(source[0].images) == 1


def test_a_machine_that_cannot_tell_whether_an_image_is_there_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", fail)
    with pytest.raises(DataError, match=r"red.png cannot be read: Permission denied\. Put that right"):
        from_file(tmp_path, {"image": "red.png", "conversations": SAID})
