"""The account of records that cannot be used: each named and counted, up to the limit that the recipe states."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from linearize.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

NUM_NAMED = 5  # how many bad records one message names; the others are only counted


class BadRecordError(ValueError):
    """One record cannot be used.

    Attributes:
        fault: the class of the fault, in a few words that are the same for every record with it.
    """

    def __init__(self, fault: str, detail: str = "") -> None:
        self.fault = fault
        super().__init__(f"{fault}: {detail}" if detail else fault)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Where a bad record stands and what is wrong with it.

    Attributes:
        line: its first line in the file, from 1, or its row in the dataset, from 0.
    """

    line: int
    fault: str
    reason: str


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
        self._by_line: dict[int, BadRecord] = {}
        self._lock = threading.Lock()  # a prefetching thread and an evaluation may read at the same time

    def __len__(self) -> int:
        return len(self._by_line)

    def __contains__(self, line: int) -> bool:
        return line in self._by_line

    def records(self) -> list[BadRecord]:
        """All of them, by line."""
        return sorted(self._by_line.values(), key=lambda record: record.line)

    @property
    def limit(self) -> int:
        """How many bad records are put up with."""
        if isinstance(self.max_bad, int):
            return self.max_bad
        # The tiny addition keeps 0.29 of 100 records from being 28.
        return int(self.max_bad * self.num_records + 1e-6)

    def add(self, line: int, error: BadRecordError) -> bool:
        """Notes a bad record; False when that line had been noted before."""
        with self._lock:
            if line in self._by_line:
                return False
            self._by_line[line] = BadRecord(line, error.fault, str(error))
            return True

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
                    if self.add(line, error):
                        logger.warning("%s, %s %d skipped: %s", self.name, self.unit, line, error)
            self.check_limit()
        raise DataError(f"{self.name}: {none_left}.\n{self.first_few()}")

    def check_limit(self, advice: str = "") -> None:
        """Refuses the file when it has more bad records than the limit.

        Raises:
            DataError: names the first few with their numbers and reasons, counts the kinds, and says what to do.
        """
        if len(self) <= self.limit:
            return
        raise DataError(
            f"{self.name}: {self.summary()}; at most {self.limit} may be (data.max_bad = {self.max_bad}).\n"
            f"{self.first_few()}\n"
            f"{advice}Mend or remove these {self._noun}s, or raise data.max_bad to skip them: "
            "a count (10) or a share (0.05)."
        )

    def summary(self) -> str:
        """Such as "3 of 100 records are bad (2 image not found, 1 malformed JSON)"."""
        kinds = Counter(record.fault for record in self._by_line.values())
        listed = ", ".join(f"{count} {fault}" for fault, count in kinds.most_common())
        verb = f"{self._noun} is" if self.num_records == 1 else f"{self._noun}s are"
        return f"{len(self)} of {self.num_records} {verb} bad" + (f" ({listed})" if listed else "")

    def first_few(self) -> str:
        """The first few, one per line, and how many follow."""
        lines = [f"  {self.unit} {record.line}: {record.reason}" for record in self.records()[:NUM_NAMED]]
        if len(self) > NUM_NAMED:
            lines.append(f"  ... and {len(self) - NUM_NAMED} more")
        return "\n".join(lines)
