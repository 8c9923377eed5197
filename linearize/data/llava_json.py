"""LLaVA-style files as a data source: JSON or JSONL records, and a folder of images."""

from __future__ import annotations

import logging
from array import array
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from pydantic import Field

from linearize.data.bad_records import BadRecord, BadRecordError, BadRecords
from linearize.data.llava_record import LlavaRecord, parse_record
from linearize.data.record_config import RecordConfig
from linearize.data.record_file import Entry, read_entry, scan_entries
from linearize.errors import DataError, did_you_mean_path
from linearize.protocols.conversation import Conversation

logger = logging.getLogger(__name__)


class LlavaJsonConfig(RecordConfig):
    """Options of data source ``llava_json``."""

    path: Path = Field(description="the records: one JSON array, or JSONL (one record per line)")
    images: Path | None = Field(
        default=None, description="folder that the records' image names are relative to; default: the records' own"
    )


class LlavaJsonSource:
    """Conversations of one file, numbered in file order over the records that were good when it was opened.

    Opening reads every record and looks for every image file, but opens no image. A record whose image turns out to be
    broken when it is read gives way to the next good one, always the same, and is counted once.

    Attributes:
        size: good records at opening; it stays what it is when broken images turn up.
        shuffle: what the recipe asks for; the order is the sample stream's affair.
        num_marks_added: records with one image and no ``<image>`` mark, which get one in front of the first question.

    Raises:
        DataError: a path does not exist, the file is no list of records, or more records are bad than ``max_bad``.
    """

    def __init__(self, config: LlavaJsonConfig) -> None:
        self.config = config
        self.path = config.path
        self.images = config.images if config.images is not None else config.path.parent
        self.shuffle = config.shuffle
        self.num_marks_added = 0
        if config.images is not None and not self.images.is_dir():
            near = did_you_mean_path(self.images)
            text = f"there is no folder '{self.images}'.{near} Name the one that holds the images"
            raise DataError(text, option="images", found=str(self.images))
        self._bad = BadRecords(str(self.path), config.max_bad)
        # Three numbers a record, whatever its text weighs: millions of records fit in a few tens of megabytes.
        self._offsets, self._lengths, self._lines = array("q"), array("q"), array("q")
        self._open()
        self.size: int | None = len(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at ``index``, or the next good one when its image is broken.

        Raises:
            IndexError: there is no such index.
            DataError: with this record, more are bad than ``max_bad``; or a file cannot be read for a reason that lies
                with the machine, in which case skipping would make the run depend on the weather.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} asked for, {self.path} has {len(self)}")
        return self._bad.first_good(
            index,
            len(self),
            self._lines.__getitem__,
            self._read,
            none_left="no record is left whose images can be read",
        )

    def bad_records(self) -> list[BadRecord]:
        """The records skipped so far, by line."""
        return self._bad.records()

    def summary(self) -> str:
        """One line on what the file holds, for a plan or a report."""
        text = f"{self.path}: {len(self)} conversations; {self._bad.summary()}, {self._bad.limit} may be"
        if self.num_marks_added:
            text += f"; <image> put in front of the first question of {self.num_marks_added}"
        return text

    def _open(self) -> None:
        for entry in scan_entries(self.path):
            self._bad.num_records += 1
            try:
                record = self._check(entry)
            except BadRecordError as error:
                self._bad.add(entry.line, error)
                continue
            self.num_marks_added += record.mark_added
            self._offsets.append(entry.offset)
            self._lengths.append(entry.length)
            self._lines.append(entry.line)
        if not self._bad.num_records:
            raise DataError(f"'{self.path}' holds no record. {_FORMAT}", option="path")
        advice = f"Image names are relative to {self.images} (data.images). " if self._misses_images() else ""
        self._bad.check_limit(advice if len(self) else f"{advice}{_FORMAT} ")
        if not len(self):
            text = f"'{self.path}' holds no good record.\n{self._bad.first_few()}\n{_FORMAT}"
            raise DataError(text, option="path")
        if len(self._bad):
            logger.warning("%s: %s and skipped\n%s", self.path, self._bad.summary(), self._bad.first_few())

    def _check(self, entry: Entry) -> LlavaRecord:
        if entry.fault:
            raise BadRecordError("malformed JSON", entry.fault)
        record = parse_record(entry.value, system=self.config.system)
        for name in record.images:
            if not (self.images / name).is_file():
                raise BadRecordError(_NOT_FOUND, name)
        return record

    def _misses_images(self) -> bool:
        return any(record.fault == _NOT_FOUND for record in self._bad.records())

    def _read(self, place: int) -> Conversation:
        line = self._lines[place]
        try:
            value = read_entry(self.path, self._offsets[place], self._lengths[place])
            record = parse_record(value, system=self.config.system)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}, line {line}, was good when the file was opened and is not now: {error}. "
                "Leave the file alone while a run uses it; put it back as it was and resume"
            ) from error
        images = tuple(read_image(self.images / name) for name in record.images)
        return Conversation(record.turns, images, record.id or f"line {line}", record.task)


def read_image(path: Path) -> Image.Image:
    """The decoded image as RGB; transparency is dropped and EXIF rotation is not applied, as LLaVA's loader does.

    Raises:
        BadRecordError: the file is missing, or no decoder can make an image of it.
        DataError: the machine could not read it (permissions, too many open files, a disk error).
    """
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except FileNotFoundError:
        raise BadRecordError(_NOT_FOUND, str(path)) from None
    except UnidentifiedImageError:
        raise BadRecordError("broken image", f"{path} is in no image format that Pillow knows") from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever meets them (OSError, SyntaxError, struct.error, ...), but an error number
        # comes from the system alone.
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read: {error.strerror}. Put that right and resume") from error
        raise BadRecordError("broken image", f"{path}: {error}") from error


_NOT_FOUND = "image not found"
_FORMAT = (
    "A JSONL file holds one record per line, a JSON file one array of records; a record is an object such as "
    '{"image": "cat.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, '
    '{"from": "gpt", "value": "A cat."}]}.'
)
