"""A dataset of the Hugging Face hub, or a folder of one, as a data source: rows with images and conversations."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from linearize.data.hub_rows import NamedSplit, open_rows
from linearize.data.record import MESSAGE_KEYS
from linearize.data.record_config import RecordConfig
from linearize.data.record_source import RecordSource
from linearize.errors import DataError


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


class HubDatasetSource(RecordSource):
    """Conversations of one split, numbered as its rows are; opening reads no row.

    Attributes:
        size: rows of the split, bad ones among them.

    Raises:
        DataError: there is no such dataset or split, or it lacks a column that is needed.
    """

    def __init__(self, config: HubDatasetConfig) -> None:
        here = Path(config.path)
        folder = config.images if config.images is not None else here if here.is_dir() else None
        super().__init__(config, f"{config.path}, {config.split}", folder, unit="row")
        self.path = config.path
        rows = open_rows(NamedSplit(config.path, config.subset, config.split, config.revision))
        self.size = self._bad.num_records = len(rows)
        if not self.size:
            raise DataError(f"split '{config.split}' of {config.path} has no row; name another data.split")
        _check_columns(config, list(rows.column_names))
        # Rows as they are stored: images as their files' content, which is decoded here as that of any other source.
        self._rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def _line(self, index: int) -> int:
        return index

    def _value(self, index: int) -> object:
        try:
            [value] = self._rows[index].to_pylist()
        except OSError as error:
            raise DataError(f"{self.path}, row {index} cannot be read: {error}. Put that right and resume") from error
        return value


def _check_columns(config: HubDatasetConfig, columns: list[str]) -> None:
    """Refuses names of columns that are not there, and a dataset without any messages."""
    for option in ("image", "conversations", "question", "answer"):
        name = getattr(config, option)
        if name is not None and name not in columns:
            text = f"there is no column '{name}'. {config.path} has {', '.join(columns)}"
            raise DataError(text, option=option, found=name)
    if config.question is None and config.conversations is None and not set(MESSAGE_KEYS) & set(columns):
        raise DataError(
            f"{config.path} has no column {' or '.join(map(repr, MESSAGE_KEYS))}; it has {', '.join(columns)}. Name "
            "the one with the messages in data.conversations, or two columns in data.question and data.answer"
        )
