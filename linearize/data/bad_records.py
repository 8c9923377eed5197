"""The account of records that cannot be used: each named and counted, up to the limit that the recipe states."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from linearize.errors import DataError
from linearize.protocols.data import BadRecord

T = TypeVar("T")

NUM_NAMED = 5  # how many bad records one message names; the others are only counted
CUT = "cut short"
LONGEST_DETAIL = 300  # characters of a record's own content in a message; an image's name may be megabytes of base64


class BadRecordError(DataError):
    """One record cannot be used.

    Attributes:
        fault: the class of the fault, in a few words that are the same for every record with it.
        detail: what is wrong with this one.
        counts: whether it counts towards ``max_bad``; False for what the recipe asks to leave out.
    """

    counts = True

    def __init__(self, fault: str, detail: str = "") -> None:
        if len(detail) > LONGEST_DETAIL:
            detail = f"{detail[:LONGEST_DETAIL]}... ({len(detail)} characters)"
        self.fault, self.detail = fault, detail
        super().__init__(f"{fault}: {detail}" if detail else fault)


class LongRecordError(BadRecordError):
    """One record is longer than the recipe wants any to be."""

    counts = False


class BadRecords:
    """The bad records of one file or dataset so far.

    Args:
        name: of the file, for messages.
        max_bad: the limit as the recipe states it: a count (int) or a share of all records (float).
        unit: what the numbers of the records count, for messages: lines, or rows of a table.
    """

    def __init__(self, name: str, max_bad: float, unit: str = "line") -> None:
        self.name, self.max_bad, self.unit = name, max_bad, unit
        # A record may take several lines of its file, but a row is a record.
        self._noun = "record" if unit == "line" else unit
        self.num_records = 0
        self._num_counting = 0
        # By place and whether it is left out: one that was cut may turn out later to be none for the teacher.
        self._found: dict[tuple[str, int, bool], BadRecord] = {}
        self._lock = threading.Lock()  # a prefetching thread and an evaluation may read at the same time

    def __len__(self) -> int:
        return sum(record.left_out for record in self.records())

    def __contains__(self, line: int) -> bool:
        return (self.name, line, True) in self._found

    def records(self) -> list[BadRecord]:
        """All of them and those that were cut, in the order in which they were found."""
        with self._lock:
            return list(self._found.values())

    @property
    def limit(self) -> int:
        """How many bad records are put up with."""
        if isinstance(self.max_bad, int):
            return self.max_bad
        # The tiny addition keeps 0.29 of 100 records from being 28.
        return int(self.max_bad * self.num_records + 1e-6)

    def add(self, line: int, error: BadRecordError, *, source: str = "", unit: str = "") -> None:
        """Notes a bad record, once.

        Args:
            source, unit: of the record, where it is one of several files.
        """
        record = BadRecord(source or self.name, unit or self.unit, line, error.fault, str(error), error.counts)
        with self._lock:
            self._note(record)

    def add_cut(self, line: int, reason: str) -> None:
        """Notes a record of which only a part is used, once."""
        with self._lock:
            self._note(BadRecord(self.name, self.unit, line, CUT, reason, counts=False, left_out=False))

    def take_over(self, records: Iterable[BadRecord]) -> None:
        """Adds records that a copy of this account has, once.

        Raises:
            DataError: more are bad than the limit.
        """
        with self._lock:
            for record in records:
                self._note(record)
        self.check_limit()

    def _note(self, record: BadRecord) -> None:
        place = record.source, record.line, record.left_out
        if place not in self._found:
            self._found[place] = record
            self._num_counting += record.counts

    def first_good(
        self, index: int, size: int, line_of: Callable[[int], int], read: Callable[[int], T], *, none_left: str
    ) -> T:
        """What ``read`` gives for ``index``, or for the next index that is good, from the last on to the first.

        A record that turns out to be bad is noted, once, and never read again.

        Args:
            size: indices run from 0 to ``size`` - 1.
            line_of: index -> where the record stands.
            read: index -> the record; raises BadRecordError when it cannot be used.
            none_left: what to say when every index is bad.

        Raises:
            DataError: more records are bad than the limit, or none is left.
        """
        for step in range(size):
            place = (index + step) % size
            line = line_of(place)
            if line not in self:
                try:
                    return read(place)
                except BadRecordError as error:
                    self.add(line, error)
            self.check_limit()
        raise DataError(f"{self.name}: {none_left}.\n{named(self.records())}")

    def check_limit(self, advice: str = "") -> None:
        """Refuses the file when it has more bad records than the limit.

        Raises:
            DataError: names the first few with their numbers and reasons, counts the kinds, and says what to do.
        """
        if self._num_counting <= self.limit:
            return
        raise DataError(
            f"{self.name}: {self.summary()}; at most {self.limit} may be (data.max_bad = {self.max_bad}).\n"
            f"{named(record for record in self.records() if record.counts)}\n"
            f"{advice}Mend or remove these {self._noun}s, or raise data.max_bad to skip them: "
            "a count (10) or a share (0.05)."
        )

    def summary(self) -> str:
        """Such as "3 of 100 records are bad (2 image not found, 1 malformed JSON)"."""
        verb = f"{self._noun} is" if self.num_records == 1 else f"{self._noun}s are"
        kinds = by_fault(record for record in self.records() if record.left_out)
        return f"{len(self)} of {self.num_records} {verb} bad" + (f" ({kinds})" if kinds else "")


def by_fault(records: Iterable[BadRecord]) -> str:
    """Such as "2 image not found, 1 malformed JSON", the most frequent first."""
    kinds = Counter(record.fault for record in records)
    return ", ".join(f"{count} {fault}" for fault, count in kinds.most_common())


def named(records: Iterable[BadRecord]) -> str:
    """The first few by their numbers, one a line, and how many follow."""
    ordered = sorted(records, key=lambda record: (record.source, record.line))
    tells_source = len({record.source for record in ordered}) > 1
    lines = [
        f"  {f'{record.source}, ' if tells_source else ''}{record.unit} {record.line}: {record.reason}"
        for record in ordered[:NUM_NAMED]
    ]
    if len(ordered) > NUM_NAMED:
        lines.append(f"  ... and {len(ordered) - NUM_NAMED} more")
    return "\n".join(lines)
