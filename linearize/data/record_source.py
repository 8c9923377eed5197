"""A data source of somebody else's records, wherever they come from: what is read, skipped and counted, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from linearize.data.bad_records import BadRecordError, BadRecords, LongRecordError
from linearize.data.image_references import ImageReferences
from linearize.data.messages import ImageReference
from linearize.data.record import IMAGE_KEYS, MESSAGE_KEYS, Record, parse_record
from linearize.data.record_config import RecordConfig
from linearize.data.shorten import shorten
from linearize.errors import DataError
from linearize.protocols import BadRecord, Conversation


class RecordSource(ABC):
    """Conversations by number.

    A record that cannot be used gives way to the next good one, always the same, and is counted once.

    Args:
        name: of the file or dataset, for messages.
        folder: what image names are relative to.
        unit: what the numbers of records count: lines, or rows of a table.

    Attributes:
        size: how many; it stays what it is when bad records turn up.
        shuffle: what the recipe asks for; the order is the sample stream's affair.
    """

    size: int | None

    def __init__(self, config: RecordConfig, name: str, folder: Path | None, *, unit: str) -> None:
        self.config, self.name, self.shuffle = config, name, config.shuffle
        self._images = ImageReferences(folder, exif_rotation=config.exif_rotation)
        self._bad = BadRecords(name, config.max_bad, unit)
        self._num_tokens: Callable[[Conversation], int] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _line(self, index: int) -> int:
        """Where the record stands, as messages name it."""

    @abstractmethod
    def _value(self, index: int) -> object:
        """The record as it is stored.

        Raises:
            BadRecordError: this one cannot be read.
            DataError: the machine could not read it.
        """

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at ``index``, or the next good one.

        Raises:
            IndexError: there is no such index.
            DataError: with this record, more are bad than ``max_bad``; or a file cannot be read for a reason that lies
                with the machine, in which case skipping would make the run depend on the weather.
        """
        return self._first_good(index, self._images.read)

    def outline(self, index: int) -> Conversation:
        """The same with blank images of the right sizes, for whoever only counts tokens: no pixel is decoded.

        Raises:
            IndexError, DataError: as for the conversation itself.
        """
        return self._first_good(index, lambda reference: Image.new("RGB", self._images.size(reference)))

    def fit_to(self, num_tokens: Callable[[Conversation], int]) -> None:
        """From now on leaves out what the teacher cannot take, and leaves out or cuts what has too many tokens.

        Args:
            num_tokens: of a whole conversation; raises DataError for one that the teacher cannot take.
        """
        self._num_tokens = num_tokens

    def bad_records(self) -> list[BadRecord]:
        """The records left out or cut so far, in the order in which they were found."""
        return self._bad.records()

    def take_over(self, records: Sequence[BadRecord]) -> None:
        """Adds what copies of this source found.

        Raises:
            DataError: together, more are bad than ``max_bad``.
        """
        self._bad.take_over(record for record in records if record.source == self.name)

    def parse(self, value: object) -> Record:
        """The record that a stored value holds.

        Raises:
            BadRecordError: it is no usable record.
        """
        return parse_record(_by_usual_keys(value, self.config), system=self.config.system)

    def _first_good(self, index: int, image: Callable[[ImageReference], Image.Image]) -> Conversation:
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} asked for, {self.name} has {len(self)}")
        return self._bad.first_good(
            index, len(self), self._line, lambda place: self._conversation(place, image),
            none_left="no record is left that can be used",
        )  # fmt: skip

    def _conversation(self, index: int, image: Callable[[ImageReference], Image.Image]) -> Conversation:
        record = self.parse(self._value(index))
        place = f"{self._bad.unit} {self._line(index)}"
        try:
            images = tuple(map(image, record.images))
        except BadRecordError:
            raise
        except DataError as error:
            raise DataError(f"{self.name}, {place}: {error}") from error
        conversation = Conversation(record.turns, images, record.id or place, record.task)
        return conversation if self._num_tokens is None else self._fitting(index, conversation, self._num_tokens)

    def _fitting(
        self, index: int, conversation: Conversation, num_tokens: Callable[[Conversation], int]
    ) -> Conversation:
        """The conversation, or the part of it that the recipe wants.

        Raises:
            BadRecordError: the teacher cannot take it, or it is too long.
        """
        limit = self.config.max_tokens
        try:
            tokens = num_tokens(conversation)
            if tokens <= limit:
                return conversation
            cut = shorten(conversation, num_tokens, limit) if self.config.too_long == "truncate" else None
        except DataError as error:
            raise BadRecordError("not for this teacher", str(error)) from error
        if cut is None:
            raise LongRecordError("too long", f"{tokens} tokens; data.max_tokens = {limit}")
        self._bad.add_cut(self._line(index), f"{tokens} tokens cut to {num_tokens(cut)}; data.max_tokens = {limit}")
        return cut


def _by_usual_keys(value: object, config: RecordConfig) -> object:
    """The value with what the recipe's keys name under the keys that are usual."""
    if not isinstance(value, Mapping):
        return value
    usual = dict(value)
    for option, keys in (("image", IMAGE_KEYS), ("conversations", MESSAGE_KEYS)):
        key = getattr(config, option)
        if key is not None:
            found = value.get(key)
            usual = {name: one for name, one in usual.items() if name not in keys} | {keys[0]: found}
    if config.question is not None:
        usual = {name: one for name, one in usual.items() if name not in MESSAGE_KEYS}
        usual[MESSAGE_KEYS[0]] = [
            {"from": speaker, "value": value.get(key)}
            for speaker, key in (("human", config.question), ("gpt", config.answer or ""))
        ]
    return usual
