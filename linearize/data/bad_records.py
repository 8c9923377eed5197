"""The account of records that cannot be used: each named and counted, up to the limit that the recipe states."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from linearize.errors import DataError

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
    """Where a bad record stands (its first line in the file, from 1) and what is wrong with it."""

    line: int
    fault: str
    reason: str


class BadRecords:
    """The bad records of one file so far.

    Args:
        name: of the file, for messages.
        max_bad: the limit as the recipe states it: a count (int) or a share of all records (float).
    """

    def __init__(self, name: str, max_bad: float) -> None:
        self.name, self.max_bad = name, max_bad
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

    def check_limit(self, advice: str = "") -> None:
        """Refuses the file when it has more bad records than the limit.

        Raises:
            DataError: names the first few with line numbers and reasons, counts the kinds, and says what to do.
        """
        if len(self) <= self.limit:
            return
        raise DataError(
            f"{self.name}: {self.summary()}; at most {self.limit} may be (data.max_bad = {self.max_bad}).\n"
            f"{self.first_few()}\n"
            f"{advice}Mend or remove these records, or raise data.max_bad to skip them: a count (10) or a share (0.05)."
        )

    def summary(self) -> str:
        """Such as "3 of 100 records are bad (2 image not found, 1 malformed JSON)"."""
        kinds = Counter(record.fault for record in self._by_line.values())
        listed = ", ".join(f"{count} {fault}" for fault, count in kinds.most_common())
        verb = "record is" if self.num_records == 1 else "records are"
        return f"{len(self)} of {self.num_records} {verb} bad" + (f" ({listed})" if listed else "")

    def first_few(self) -> str:
        """The first few, one per line, and how many follow."""
        lines = [f"  line {record.line}: {record.reason}" for record in self.records()[:NUM_NAMED]]
        if len(self) > NUM_NAMED:
            lines.append(f"  ... and {len(self) - NUM_NAMED} more")
        return "\n".join(lines)
