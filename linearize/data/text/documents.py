"""The documents of a corpus, one after another, wherever they are stored."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearize.data.bad_records import BadRecordError
from linearize.data.hub_rows import NamedSplit, open_rows
from linearize.data.record_file import scan_entries
from linearize.data.text.config import TextConfig
from linearize.errors import DataError, did_you_mean_path

PLAIN, RECORDS, TABLES = (".txt", ".md"), (".jsonl", ".json"), (".parquet",)
KINDS = (*PLAIN, *RECORDS, *TABLES)
"""Endings of the files that are read."""

NO_TEXT = "no text"
NOT_UTF8 = "not UTF-8"


@dataclass(frozen=True, slots=True)
class Document:
    """One document, or why there is none.

    Attributes:
        source: the file or dataset.
        unit, number: where it stands there: a line or document from 1, or a row from 0.
    """

    source: str
    unit: str
    number: int
    text: str = ""
    fault: BadRecordError | None = None


class Corpus:
    """Gives all documents in the order of the recipe's paths, each time it is iterated.

    Opening it looks whether files are there, and opens a dataset of the hub.

    Raises:
        DataError: a path leads nowhere, or to a file that is not read; or the hub has no such dataset.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        paths = (config.path,) if isinstance(config.path, str) else config.path
        self._rows: Any = None
        self._files: list[Path] = []
        if len(paths) == 1 and _is_dataset(paths[0]):
            self.name = f"{paths[0]}, {config.split}"
            self._rows = open_rows(
                NamedSplit(paths[0], config.subset, config.split, config.revision), streaming=config.streaming
            )
            columns = self._rows.column_names
            if columns is not None and config.key not in columns:
                text = f"there is no column '{config.key}'. {paths[0]} has {', '.join(columns)}"
                raise DataError(text, option="key", found=config.key)
        else:
            self.name = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
            self._files = [file for path in paths for file in _files_at(path)]

    def __iter__(self) -> Iterator[Document]:
        if self._rows is not None:
            yield from _of_rows(self.name, self._rows, self.config.key)
        for file in self._files:
            if file.suffix in PLAIN:
                yield from _of_plain_text(file, self.config.separator)
            elif file.suffix in RECORDS:
                yield from _of_records(file, self.config.key)
            else:
                yield from _of_table(file, self.config.key)


def _is_dataset(path: str) -> bool:
    """Whether it is a folder that save_to_disk wrote, or can only be a hub id."""
    here = Path(path).expanduser()
    if here.is_dir():
        return any((here / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    is_plain = not here.is_absolute() and not path.startswith((".", "~")) and path.count("/") <= 1
    return not here.exists() and is_plain and here.suffix not in KINDS and not glob.has_magic(path)


def _files_at(path: str) -> list[Path]:
    here = Path(path).expanduser()
    if here.is_dir():
        found = sorted(file for file in here.rglob("*") if file.suffix in KINDS and file.is_file())
        if not found:
            raise DataError(f"folder '{path}' holds no {_listed(KINDS)} file", option="path", found=path)
        return found
    if here.is_file():
        if here.suffix not in KINDS:
            raise DataError(f"'{path}' ends in '{here.suffix}'; expected {_listed(KINDS)}", option="path", found=path)
        return [here]
    if glob.has_magic(path):
        found = sorted(Path(name) for name in glob.glob(str(here), recursive=True) if Path(name).is_file())
        if found:
            return [file for name in found for file in _files_at(str(name))]
        raise DataError(f"no file matches '{path}'", option="path", found=path)
    raise DataError(f"there is no file or folder '{path}'.{did_you_mean_path(path)}", option="path", found=path)


def _listed(endings: tuple[str, ...]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _of_plain_text(file: Path, separator: str | None) -> Iterator[Document]:
    name = str(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield Document(name, "document", 1, fault=BadRecordError(NOT_UTF8, f"byte {error.start + 1} of the file"))
        return
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror}. Put that right and resume") from error
    for number, part in enumerate(text.split(separator) if separator is not None else [text], start=1):
        if part.strip():
            yield Document(name, "document", number, part)


def _of_records(file: Path, key: str) -> Iterator[Document]:
    for entry in scan_entries(file):
        if entry.fault:
            yield Document(str(file), entry.unit, entry.number, fault=BadRecordError("malformed JSON", entry.fault))
        else:
            yield _of_value(str(file), entry.unit, entry.number, entry.value, key)


def _of_table(file: Path, key: str) -> Iterator[Document]:
    import datasets

    try:
        rows = datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
        columns = rows.column_names
        if columns is not None and key not in columns:
            raise DataError(f"there is no column '{key}'. {file} has {', '.join(columns)}", option="key", found=key)
        yield from _of_rows(str(file), rows, key)
    except DataError:
        raise
    except Exception as error:  # datasets and pyarrow fail in ways of their own
        raise DataError(f"'{file}' cannot be read as Parquet: {type(error).__name__}: {error}") from error


def _of_rows(name: str, rows: Any, key: str) -> Iterator[Document]:
    if rows.column_names is not None:
        rows = rows.select_columns([key])
    for number, row in enumerate(rows):
        yield _of_value(name, "row", number, row, key)


def _of_value(source: str, unit: str, number: int, value: object, key: str) -> Document:
    text = value.get(key) if isinstance(value, dict) else value if isinstance(value, str) else None
    if isinstance(text, str) and text.strip():
        return Document(source, unit, number, text)
    if not isinstance(value, dict | str):
        detail = f"expected an object with '{key}', got {type(value).__name__}"
    elif isinstance(value, dict) and key not in value:
        detail = f"there is no '{key}'; name the key in data.key. The record has {', '.join(map(str, value)) or 'none'}"
    else:
        detail = f"'{key}' is {'empty' if isinstance(text, str) else f'no text but {type(text).__name__}'}"
    return Document(source, unit, number, fault=BadRecordError(NO_TEXT, detail))
