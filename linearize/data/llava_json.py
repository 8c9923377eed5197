"""LLaVA-style files as a data source: JSON or JSONL records, and a folder of images."""

from __future__ import annotations

from array import array
from pathlib import Path

from pydantic import Field

from linearize.data.bad_records import BadRecordError, named
from linearize.data.images import NOT_FOUND
from linearize.data.record import Record
from linearize.data.record_config import RecordConfig
from linearize.data.record_file import Entry, read_entry, scan_entries
from linearize.data.record_source import RecordSource
from linearize.errors import DataError, did_you_mean_path


class LlavaJsonConfig(RecordConfig):
    """Options of data source ``llava_json``."""

    path: Path = Field(description="the records: one JSON array, or JSONL (one record per line), in UTF-8")


class LlavaJsonSource(RecordSource):
    """Conversations of one file, numbered in file order over the records that were good when it was opened.

    Opening reads every record and looks for every image file, but opens no image.

    Attributes:
        size: good records at opening; it stays what it is when broken images turn up.
        num_marks_added: records with one image and no ``<image>`` mark, which get one in front of the first question.

    Raises:
        DataError: a path does not exist, the file is no list of records, or more records are bad than ``max_bad``.
    """

    def __init__(self, config: LlavaJsonConfig) -> None:
        self.path = config.path
        self.images = config.images if config.images is not None else config.path.parent
        super().__init__(config, str(self.path), self.images, unit="line")
        self.num_marks_added = 0
        self._refuse_missing_paths()
        # Three numbers a record, whatever its text weighs: millions of records fit in a few tens of megabytes.
        self._offsets, self._lengths, self._numbers = array("q"), array("q"), array("q")
        self._open()
        self.size = len(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def summary(self) -> str:
        """One line on what the file holds, for a plan or a report."""
        text = f"{self.path}: {len(self)} conversations; {self._bad.summary()}, {self._bad.limit} may be"
        if self.num_marks_added:
            text += f"; <image> put in front of the first question of {self.num_marks_added}"
        return text

    def _refuse_missing_paths(self) -> None:
        """One message for both, so that neither hides behind the other."""
        missing = {}
        if not self.path.exists():
            missing["path"] = f"'{self.path}' cannot be read: No such file or directory.{did_you_mean_path(self.path)}"
        if not self.images.is_dir() and self.config.images is not None:
            near = did_you_mean_path(self.images)
            missing["images"] = f"there is no folder '{self.images}'.{near} Name the one that holds the images"
        if missing:
            option, text = next(iter(missing.items()))
            also = f" And data.images: {missing['images']}" if len(missing) == 2 else ""
            raise DataError(text + also, option=option, found=str(getattr(self.config, option)))

    def _open(self) -> None:
        for entry in scan_entries(self.path):
            self._bad.num_records += 1
            self._bad.unit = entry.unit
            try:
                record = self._check(entry)
            except BadRecordError as error:
                self._bad.add(entry.number, error)
                continue
            self.num_marks_added += record.mark_added
            self._offsets.append(entry.offset)
            self._lengths.append(entry.length)
            self._numbers.append(entry.number)
        if not self._bad.num_records:
            raise DataError(f"'{self.path}' holds no record. {_FORMAT}", option="path")
        advice = f"Image names are relative to {self.images} (data.images). " if self._misses_images() else ""
        self._bad.check_limit(advice if len(self) else f"{advice}{_FORMAT} ")
        if not len(self):
            text = f"'{self.path}' holds no good record.\n{named(self.bad_records())}\n{_FORMAT}"
            raise DataError(text, option="path")

    def _check(self, entry: Entry) -> Record:
        if entry.fault:
            raise BadRecordError("malformed JSON", entry.fault)
        record = self.parse(entry.value)
        for reference in record.images:
            self._images.check(reference)
        return record

    def _misses_images(self) -> bool:
        return any(record.fault == NOT_FOUND for record in self.bad_records())

    def _line(self, index: int) -> int:
        return self._numbers[index]

    def _value(self, index: int) -> object:
        try:
            value = read_entry(self.path, self._offsets[index], self._lengths[index])
            self.parse(value)
        except (OSError, ValueError, BadRecordError) as error:
            place = f"{self.path}, {self._bad.unit} {self._numbers[index]}"
            raise DataError(
                f"{place}, was good when the file was opened and is not now: {error}. "
                "Leave the file alone while a run uses it; put it back as it was and resume"
            ) from error
        return value


_FORMAT = (
    "A JSONL file holds one record per line, a JSON file one array of records; a record is an object such as "
    '{"image": "cat.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, '
    '{"from": "gpt", "value": "A cat."}]}.'
)
