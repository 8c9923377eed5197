"""A dataset of the Hugging Face hub, or a folder of one, as a data source: rows with images and conversations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from PIL import Image
from pydantic import Field, model_validator

from linearize.data.bad_records import BadRecord, BadRecordError, BadRecords
from linearize.data.llava_record import parse_record
from linearize.data.record_config import RecordConfig
from linearize.errors import DataError, did_you_mean_path
from linearize.files import hub
from linearize.protocols.conversation import IMAGE_MARK, Conversation

IMAGES = ("image", "images")
"""Columns that are looked for, in this order, where the recipe names none with the images."""

CONVERSATIONS = ("conversations", "messages", "texts")
"""Columns that are looked for, in this order, where the recipe names none with the messages."""


class HubDatasetConfig(RecordConfig):
    """Options of data source ``hub_dataset``."""

    path: str = Field(description="a dataset's hub id, a folder that save_to_disk wrote, or a folder of Parquet files")
    subset: str | None = Field(
        default=None, description="the dataset's configuration; absent: its default one; not for save_to_disk"
    )
    split: str = Field(
        default="train",
        description="a split, or a part of one such as train[:10%], which a folder of save_to_disk cannot give",
    )
    revision: str | None = Field(default=None, description="a commit or tag of the hub's repository; hub ids only")
    image: str | None = Field(
        default=None, description='the column with an image or a list of them; absent: "image" or "images", if any'
    )
    conversations: str | None = Field(
        default=None,
        description="the column with messages, in the keys of llava_json; "
        'absent: "conversations", "messages" or "texts", unless question and answer are named',
    )
    question: str | None = Field(default=None, description="the column with one question, in the place of messages")
    answer: str | None = Field(default=None, description="the column with its answer")

    @model_validator(mode="after")
    def _turns_come_from_one_place(self) -> Self:
        pair = {"question": self.question, "answer": self.answer}
        named = [f"{name} = '{column}'" for name, column in pair.items() if column is not None]
        if len(named) == 1:
            missing = next(name for name, column in pair.items() if column is None)
            raise ValueError(f"{named[0]} is given without {missing}; name the column with the {missing}, too")
        if named and self.conversations is not None:
            raise ValueError(
                f"conversations = '{self.conversations}' is given beside {' and '.join(named)}; turns come either from "
                "a column of messages or from a question and an answer: leave out the one or the other"
            )
        return self


class HubDatasetSource:
    """Conversations of one split, numbered as its rows are.

    A row that cannot be used gives way to the next good one, always the same, and is counted once.

    Attributes:
        size: rows of the split, bad ones among them.
        shuffle: what the recipe asks for; the order is the sample stream's affair.

    Raises:
        DataError: there is no such dataset or split, or it lacks a column that is needed.
    """

    def __init__(self, config: HubDatasetConfig) -> None:
        self.config, self.shuffle = config, config.shuffle
        self._rows = _open(config)
        self.size: int | None = len(self._rows)
        if not self.size:
            raise DataError(f"split '{config.split}' of {config.path} has no row; name another data.split")
        columns = list(self._rows.column_names)
        self._image = _column(config, columns, "image", IMAGES)
        self._conversations = None
        if config.question is None:
            self._conversations = _column(config, columns, "conversations", CONVERSATIONS)
            if self._conversations is None:
                raise DataError(
                    f"{config.path} has no column {' or '.join(map(repr, CONVERSATIONS))}; it has "
                    f"{', '.join(columns)}. Name the one with the messages in data.conversations, or two columns in "
                    "data.question and data.answer"
                )
        else:
            self._pair = tuple(_named(config, columns, name) for name in ("question", "answer"))
        self._bad = BadRecords(f"{config.path}, {config.split}", config.max_bad, unit="row")
        self._bad.num_records = self.size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        """The conversation of row ``index``, or of the next good row.

        Raises:
            IndexError: there is no such row.
            DataError: with this row, more are bad than ``max_bad``; or it cannot be read for a reason that lies with
                the machine, in which case skipping would make the run depend on the weather.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} asked for, {self.config.path} has {len(self)}")
        return self._bad.first_good(
            index, len(self), lambda row: row, self._read, none_left="no row is left that can be used"
        )

    def bad_records(self) -> list[BadRecord]:
        """The rows skipped so far."""
        return self._bad.records()

    def _read(self, row: int) -> Conversation:
        try:
            values = self._rows[row]
        except FileNotFoundError as error:
            raise BadRecordError("image not found", error.filename or str(error)) from None
        except MemoryError:
            raise
        except Exception as error:
            # The decoders of images raise whatever meets them, but an error number comes from the system alone.
            if isinstance(error, OSError) and error.errno is not None:
                raise DataError(
                    f"{self.config.path}, row {row} cannot be read: {error}. Put that right and resume"
                ) from error
            raise BadRecordError("broken image", str(error)) from error
        images = _images(values.get(self._image) if self._image else None)
        if self._conversations is None:
            question, answer = (values[name] for name in self._pair)
            messages: Any = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        else:
            messages = [one for message in values[self._conversations] or [] for one in _messages(message)]
        record = parse_record(
            {
                "conversations": messages, "image": [str(number) for number in range(len(images))],
                "system": values.get("system"), "id": values.get("id", ""), "task": values.get("task", ""),
            },
            system=self.config.system,
        )  # fmt: skip
        return Conversation(record.turns, images, record.id or f"row {row}", record.task)


def _open(config: HubDatasetConfig) -> Any:
    """The rows of the split."""
    import datasets

    folder = Path(config.path)
    with hub.asked_once(config.path) as obstacle:
        try:
            if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
                _refuse_hub_options(config)
                return _saved_split(config, datasets.load_from_disk(str(folder)))
            return datasets.load_dataset(config.path, config.subset, split=config.split, revision=config.revision)
        except DataError:
            raise
        except Exception as error:
            # Hub, network, scripts and file formats fail in ways of their own; all mean that there are no data.
            reason = hub.failure(error, obstacle).splitlines()[0]
            if not folder.exists():
                near = did_you_mean_path(folder)
                reason = f"there is no such folder in {Path.cwd()}.{near} As a hub id it cannot be read: {reason}"
            raise DataError(
                f"'{config.path}' could not be opened as split '{config.split}': {reason}. It takes a "
                "dataset's hub id, a folder that save_to_disk wrote or one of Parquet files; a private one needs a "
                "token (`hf auth login`)",
                option="path",
                found=config.path,
            ) from error


def _refuse_hub_options(config: HubDatasetConfig) -> None:
    """What save_to_disk wrote holds one version of one subset, and its name says neither."""
    named = [f"data.{name} = '{getattr(config, name)}'" for name in ("subset", "revision") if getattr(config, name)]
    if named:
        raise DataError(
            f"{' and '.join(named)} cannot be chosen in {config.path}: save_to_disk wrote that folder, with one "
            "version of one subset. Leave it out, or give data.path the dataset's hub id"
        )


def _saved_split(config: HubDatasetConfig, found: Any) -> Any:
    """The rows of the split in what save_to_disk wrote: several splits by name, or one that need not have a name."""
    import datasets

    if isinstance(found, datasets.DatasetDict):
        if config.split in found:
            return found[config.split]
        has = ", ".join(found)
    else:
        # The recipe's default stands for the only split that is there, whatever its name.
        name = str(found.split or "train")
        if config.split in ("train", name):
            return found
        has = f"one split alone, '{name}'"
    raise DataError(
        f"{config.path} has no split '{config.split}'; it has {has}. Name what it has in data.split; parts of a split, "
        "such as train[:10%], are for hub datasets and folders of Parquet files"
    )


def _column(config: HubDatasetConfig, columns: list[str], option: str, usual: tuple[str, ...]) -> str | None:
    """The column that an option names, else the first usual one that is there."""
    if getattr(config, option) is not None:
        return _named(config, columns, option)
    return next((name for name in usual if name in columns), None)


def _named(config: HubDatasetConfig, columns: list[str], option: str) -> str:
    name = getattr(config, option)
    if name in columns:
        return str(name)
    text = f"there is no column '{name}'. {config.path} has {', '.join(columns)}"
    raise DataError(text, option=option, found=name)


def _messages(entry: Any) -> list[Any]:
    """One entry of the messages in the keys of llava_json, or two: some datasets have question and answer in one."""
    if not isinstance(entry, Mapping):
        return [entry]
    if "user" in entry and "assistant" in entry:
        return [{"from": "human", "value": entry["user"]}, {"from": "gpt", "value": entry["assistant"]}]
    # Rows of a table have all keys that any row has.
    message = {key: value for key, value in entry.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = "".join(map(_part, message["content"]))
    return [message]


def _part(part: Any) -> str:
    """A piece of a message as text; an image as its mark."""
    if isinstance(part, Mapping) and part.get("type") == "image":
        return f"{IMAGE_MARK}\n"
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadRecordError("not a record", f"a message holds {part!r}; a text or an image was due")


def _images(found: Any) -> tuple[Image.Image, ...]:
    """The row's images as RGB."""
    if found is None:
        return ()
    images = found if isinstance(found, list) else [found]
    for image in images:
        if not isinstance(image, Image.Image):
            raise BadRecordError(
                "not an image", f"{type(image).__name__} found; the column has to be one of datasets' feature Image"
            )
    return tuple(image.convert("RGB") for image in images)
