"""The account of a run: what its source leaves out is written once and warned of once."""

from __future__ import annotations

import json
from pathlib import Path

from linearize.data.bad_record_file import BadRecordFile, left_out, read_bad_records
from linearize.protocols import BadRecord, Conversation


class Leaking:
    """A source that leaves out what it is told to."""

    size: int | None = 9

    def __init__(self) -> None:
        self.records: list[BadRecord] = []

    def leave_out(self, *lines: int) -> None:
        self.records += [
            BadRecord("cats.jsonl", "line", line, "broken image", f"broken image: {line}") for line in lines
        ]

    def __getitem__(self, index: int) -> Conversation:
        raise AssertionError("no record is read")

    outline = __getitem__

    def fit_to(self, num_tokens: object) -> None: ...

    def bad_records(self) -> list[BadRecord]:
        return self.records


class Silent:
    """A source that keeps no account."""

    size: int | None = None

    def __getitem__(self, index: int) -> Conversation:
        raise AssertionError("no record is read")


def indices(folder: Path, name: str = "bad_records.jsonl") -> list[int]:
    return [json.loads(line)["index"] for line in (folder / name).read_text().splitlines()]


def test_each_record_is_written_and_warned_of_once_over_restarts(tmp_path: Path) -> None:
    source, warnings = Leaking(), list[str]()
    source.leave_out(3, 1)
    first = BadRecordFile(tmp_path / "run", warn=warnings.append)
    first.follow(source)
    first.follow(source)
    source.leave_out(7)
    first.follow(source)
    assert indices(tmp_path / "run") == [3, 1, 7]
    assert warnings == [
        "cats.jsonl: 2 records skipped (2 broken image)\n  line 1: broken image: 1\n  line 3: broken image: 3",
        "cats.jsonl: 1 record skipped (1 broken image)\n  line 7: broken image: 7",
    ]
    again, later = Leaking(), list[str]()
    again.leave_out(7, 8)
    BadRecordFile(tmp_path / "run", warn=later.append).follow(again)
    assert indices(tmp_path / "run") == [3, 1, 7, 8]
    assert later == ["cats.jsonl: 1 record skipped (1 broken image)\n  line 8: broken image: 8"]


def test_a_line_that_a_kill_cut_short_is_written_anew(tmp_path: Path) -> None:
    source = Leaking()
    source.leave_out(3, 4)
    BadRecordFile(tmp_path).follow(source)
    path = tmp_path / "bad_records.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    BadRecordFile(tmp_path).follow(source)
    assert [line["index"] for line in read_bad_records(tmp_path)] == [3, 4]


def test_warnings_end_where_they_would_hide_the_run(tmp_path: Path) -> None:
    source, warnings = Leaking(), list[str]()
    file = BadRecordFile(tmp_path, warn=warnings.append)
    for line in range(9):
        source.leave_out(line)
        file.follow(source)
    assert len(warnings) == 6
    assert warnings[-1] == f"records that are skipped from here on are in {tmp_path / 'bad_records.jsonl'} alone"
    assert indices(tmp_path) == list(range(9))


def test_processes_that_train_together_write_files_of_their_own_which_are_read_as_one(tmp_path: Path) -> None:
    for rank, lines in enumerate(((1, 2), (2, 5))):
        source = Leaking()
        source.leave_out(*lines)
        BadRecordFile(tmp_path, rank=rank).follow(source)
    assert indices(tmp_path, "bad_records.rank1.jsonl") == [2, 5]
    assert [line["index"] for line in read_bad_records(tmp_path)] == [1, 2, 5]


def test_a_source_without_an_account_leaves_no_file(tmp_path: Path) -> None:
    BadRecordFile(tmp_path).follow(Silent())
    assert list(tmp_path.iterdir()) == []
    assert left_out(Silent()) == left_out(Leaking()) == ""
