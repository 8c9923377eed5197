"""Running text: documents from wherever they are stored, as rows of tokens that are found again by their number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from linearize.data.text.config import TextConfig
from linearize.data.text.rows import is_held_out
from linearize.data.text.source import TextSource
from linearize.errors import DataError

BEGIN, END = 1, 2


class Letters:
    """A teacher whose tokens are the numbers of characters, and which refuses a tab."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            if "\t" in text:
                raise DataError("a tab is no character of mine")
        self.read += texts
        return [[BEGIN, *map(ord, text), END] for text in texts]

    def text_batch(self, rows: Sequence[Sequence[int]]) -> Any:
        raise NotImplementedError


def open_text(path: str | Sequence[str] | Path, **options: Any) -> TextSource:
    where = str(path) if isinstance(path, Path) else path
    source = TextSource(TextConfig(path=where, **{"tokens": 4, **options}))
    source.read_as(Letters())
    return source


def rows_of(source: TextSource) -> list[list[int]]:
    assert source.size is not None
    return [list(source[index].ids) for index in range(source.size)]


def tokens(*texts: str) -> list[int]:
    return [token for text in texts for token in (BEGIN, *map(ord, text), END)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abcde", "f", "ghi")))
    return path


def test_joined_documents_are_cut_at_every_row_and_lose_only_the_last_incomplete_one(jsonl: Path) -> None:
    stream = tokens("abcde", "f", "ghi")
    assert rows_of(open_text(jsonl)) == [stream[0:4], stream[4:8], stream[8:12]]
    assert open_text(jsonl).contents() == "3 documents, 15 tokens in 3 rows of 4"


def test_a_row_of_one_document_ends_with_it(jsonl: Path) -> None:
    a, f, g = tokens("abcde"), tokens("f"), tokens("ghi")
    source = open_text(jsonl, rows="documents")
    assert rows_of(source) == [a[:4], a[4:], f, g[:4]]  # one token alone predicts nothing
    assert "4 rows of at most 4" in source.contents()


def test_a_row_is_the_same_whichever_was_asked_for_before(jsonl: Path) -> None:
    for options in ({}, {"rows": "documents"}, {"streaming": True}, {"streaming": True, "rows": "documents"}):
        in_order = open_text(jsonl, **options)
        wanted = [list(in_order[index].ids) for index in range(3)]
        for order in ([2, 0, 1], [1, 1, 0], [2, 1, 0]):
            source = open_text(jsonl, **options)
            assert [list(source[index].ids) for index in order] == [wanted[index] for index in order], options


def test_rows_are_made_only_as_far_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linearize.data.text.rows.BATCH_CHARACTERS", 4)
    (tmp_path / "a.txt").write_text("abcd|efgh|ijkl|mnop")
    source, teacher = TextSource(TextConfig(path=str(tmp_path), separator="|", tokens=4)), Letters()
    source.read_as(teacher)
    assert list(source[1].ids) == tokens("abcd", "efgh")[4:8]
    assert teacher.read == ["abcd", "efgh"]
    assert source.size == 6
    assert teacher.read == ["abcd", "efgh", "ijkl", "mnop"]


def test_a_stream_goes_on_from_the_first_document_and_holds_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linearize.data.text.rows.BATCH_CHARACTERS", 4)
    monkeypatch.setattr("linearize.data.text.source.KEPT_ROWS", 2)
    text = "|".join(chr(97 + number) * 6 for number in range(20))
    (tmp_path / "a.txt").write_text(text)
    for rows in ("joined", "documents"):
        whole = rows_of(open_text(tmp_path / "a.txt", separator="|", rows=rows))
        stream = open_text(tmp_path / "a.txt", separator="|", rows=rows, streaming=True)
        assert stream.size is None
        for index in (0, 1, 7, 30, 31, 5, 90, 89):
            assert list(stream[index].ids) == whole[index % len(whole)], (rows, index)
        assert len(stream._pass()._tokens) <= 8 * 4


def test_every_kind_of_file_gives_its_documents(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "2.md").write_text("two")
    (tmp_path / "3.jsonl").write_text('{"text": "three"}\n\n"four"\n')
    (tmp_path / "4.json").write_text('[{"text": "five"}]')
    datasets.Dataset.from_dict({"text": ["six"], "other": [1]}).to_parquet(str(tmp_path / "5.parquet"))
    (tmp_path / "6.py").write_text("no text")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "7.txt").write_text("seven")
    texts = ["one", "two", "three", "four", "five", "six", "seven"]
    for path in (tmp_path, [str(tmp_path / "[1-5].*"), str(tmp_path / "deep")]):
        source = open_text(path, tokens=100)
        assert rows_of(source) == [tokens(*texts)]
        assert source.bad_records() == []


def test_a_dataset_is_read_by_its_column(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"body": ["ab", "cd"]})
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "saved"))
    assert rows_of(open_text(tmp_path / "saved", key="body")) == [tokens("ab"), tokens("cd")]
    assert rows_of(open_text(tmp_path / "saved", key="body", split="test")) == [tokens("cd")]
    with pytest.raises(DataError, match=r"there is no column 'text'\. .*saved has body"):
        open_text(tmp_path / "saved")


def test_held_out_documents_are_the_others_wherever_they_stand(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(200)]
    for name, of_file in (("a", texts), ("b", texts[::-1])):
        (tmp_path / f"{name}.txt").write_text("|".join(of_file))
    parts = {}
    for name in "ab":
        for part in ("train", "held_out"):
            source = open_text(tmp_path / f"{name}.txt", separator="|", rows="documents", tokens=50, held_out=0.2,
                               part=part)  # fmt: skip
            parts[name, part] = {"".join(map(chr, row[1:-1])) for row in rows_of(source)}
    assert parts["a", "train"] == parts["b", "train"]
    assert parts["a", "held_out"] == {text for text in texts if is_held_out(text, 0.2)}
    assert parts["a", "train"] | parts["a", "held_out"] == set(texts)
    assert 20 < len(parts["a", "held_out"]) < 60
    with pytest.raises(ValueError, match="held_out = 0 keeps no document"):
        TextConfig(path="a.txt", part="held_out")


def test_bad_documents_are_named_by_file_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": \n{"title": "x"}\n{"text": 3}\n{"text": "a\\tb"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    source = open_text(tmp_path, max_bad=5)
    assert rows_of(source) == [tokens("good")[:4]]
    assert [(Path(bad.source).name, bad.unit, bad.line, bad.fault) for bad in source.bad_records()] == [
        ("a.jsonl", "line", 2, "malformed JSON"), ("a.jsonl", "line", 3, "no text"), ("a.jsonl", "line", 4, "no text"),
        ("b.txt", "document", 1, "not UTF-8"), ("a.jsonl", "line", 5, "not for this teacher"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"5 of 6 documents are bad .*\n.*b\.txt|a\.jsonl, line 2: malformed"):
        _ = open_text(tmp_path, max_bad=0.5).size
    with pytest.raises(DataError, match=r"at most 1 may be .*\n  line 2: malformed JSON"):
        open_text(tmp_path / "a.jsonl", max_bad=1)[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.txt", r"there is no file or folder '.*nowhere\.txt'"),
        ("code.py", r"ends in '\.py'; expected \.txt, \.md, "),
        ("empty", r"folder '.*empty' holds no "),
        ("*.csv", r"no file matches "),
    ],
)
def test_a_path_that_gives_no_text_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "code.py").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=says):
        open_text(str(tmp_path / name))


def test_a_corpus_without_a_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    for options in ({}, {"streaming": True}):
        with pytest.raises(DataError, match="holds no row of text"):
            open_text(tmp_path / "a.txt", **options)[0]
    with pytest.raises(DataError, match="none was named yet"):
        TextSource(TextConfig(path=str(tmp_path / "a.txt")))[0]
