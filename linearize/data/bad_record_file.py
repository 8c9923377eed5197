"""bad_records.jsonl of a run folder: every record that the run left out or cut, once, whatever process met it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from linearize.data.bad_records import NUM_NAMED, by_fault, named
from linearize.protocols.data import BadRecord, DataSource, LeavesOut
from linearize.wording import counted

NAME = "bad_records.jsonl"


class BadRecordFile:
    """Follows a source: what it newly leaves out or cuts is written to the file, and a person is warned of it, once.

    Args:
        folder: the run's.
        rank: of this process among those that train together; each but the first has a file of its own.
        warn: is called with a text; None warns of nothing.
    """

    def __init__(self, folder: Path, *, rank: int = 0, warn: Callable[[str], None] | None = None) -> None:
        self.path = folder / (NAME if rank == 0 else f"bad_records.rank{rank}.jsonl")
        self._warn, self._num_warnings = warn, 0
        self._known = {(line["source"], line["index"], line.get("left_out", True)) for line in _lines(self.path)}
        self._num_followed = 0

    def follow(self, source: DataSource) -> None:
        """Writes what the source left out since the last call; nothing for one that keeps no account.

        Raises:
            OSError: the file cannot be written.
        """
        records = source.bad_records() if isinstance(source, LeavesOut) else ()
        new, self._num_followed = records[self._num_followed :], len(records)
        self.note(new)

    def note(self, records: Sequence[BadRecord]) -> None:
        """Writes records, but for those that the file has.

        Raises:
            OSError: the file cannot be written.
        """
        new = [one for one in records if (one.source, one.line, one.left_out) not in self._known]
        if not new:
            return
        self._known.update((one.source, one.line, one.left_out) for one in new)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and not _ends_a_line(self.path):
                file.write(b"\n")  # behind what a kill cut short
            for record in new:
                file.write(json.dumps(_as_json(record), ensure_ascii=False).encode() + b"\n")
        self._tell(new)

    def _tell(self, new: Sequence[BadRecord]) -> None:
        self._num_warnings += 1
        if self._warn is None or self._num_warnings > NUM_NAMED:
            return
        self._warn(_text(new))
        if self._num_warnings == NUM_NAMED:
            self._warn(f"records that are skipped from here on are in {self.path} alone")


def left_out(source: DataSource) -> str:
    """What a person should read about the records that a source has left out so far; "" without any."""
    records = source.bad_records() if isinstance(source, LeavesOut) else ()
    return _text(records) if records else ""


def _text(records: Sequence[BadRecord]) -> str:
    """Such as "cats.jsonl: 2 records skipped (1 image not found, 1 malformed JSON)" and the first few."""
    where = records[0].source if len({record.source for record in records}) == 1 else "the training data"
    skipped, cut = ([record for record in records if record.left_out == is_gone] for is_gone in (True, False))
    said = [f"{counted(len(skipped), 'record')} skipped ({by_fault(skipped)})"] if skipped else []
    said += [f"{counted(len(cut), 'record')} cut short"] if cut else []
    return f"{where}: {' and '.join(said)}\n{named(records)}"


def read_bad_records(folder: Path) -> list[dict[str, Any]]:
    """What all processes wrote, each record once: as left out where it was cut first; what is damaged is absent."""
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for path in sorted(folder.glob("bad_records*.jsonl")):
        for line in _lines(path):
            place = line["source"], line["index"]
            if line.get("left_out", True) and not found.get(place, line).get("left_out", True):
                found[place] = line
            found.setdefault(place, line)
    return list(found.values())


def _as_json(record: BadRecord) -> dict[str, Any]:
    return {
        "source": record.source, "unit": record.unit, "index": record.line, "fault": record.fault,
        "reason": record.reason,
        **({} if record.left_out else {"left_out": False}),
    }  # fmt: skip


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        raw = path.read_bytes()
    except OSError:
        return
    for line in raw.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and value.keys() >= {"source", "index", "fault", "reason"}:
            yield value


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
