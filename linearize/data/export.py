"""Writing a source's conversations as LLaVA-style files that give exactly the same conversations back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from linearize.data.bad_records import BadRecordError
from linearize.data.images import read_image, to_rgb
from linearize.data.record import Record, parse_record, record_to_json
from linearize.errors import DataError
from linearize.protocols import Conversation, HoldsText, sources_in

if TYPE_CHECKING:
    from linearize.protocols import DataSource

RECORDS = "records.jsonl"
IMAGES = "images"
MARK = ".linearize-export"
"""Lies in a folder that an export is putting together: what else is in there may be removed."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote: ``records`` is the path for ``data.path``."""

    records: Path
    num_conversations: int
    num_images: int


def export_llava(
    source: DataSource,
    count: int,
    folder: Path,
    *,
    start: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ExportReport:
    """Writes conversations ``start`` to ``start + count - 1`` of a source to a folder that ``llava_json`` reads.

    Images become PNG files, as RGB, so that no pixel changes; ``records.jsonl`` names them relative to the folder. All
    is written to ``<folder>.partial``, which takes its name at the end: a folder of the right name is complete. An
    export that was killed goes on when it is called again: images that are there already are compared and kept.

    Args:
        source: where the conversations come from, by its own index, unshuffled.
        count: how many.
        folder: must not exist yet, or be empty; its parents are made.
        progress: called after each conversation with the number done so far.

    Raises:
        DataError: the folder holds something, or ``<folder>.partial`` something that no export began; the source is too
            short, or a conversation cannot be stored so that it would come back the same.
    """
    if count < 1 or start < 0:
        raise DataError(f"{count} conversations from number {start} on asked for; expected at least 1, from 0 on")
    if any(isinstance(one, HoldsText) for one in sources_in(source)):
        raise DataError("the data are running text; only conversations can be exported")
    if source.size is not None and start + count > source.size:
        raise DataError(
            f"conversations {start} to {start + count - 1} were asked for, the source has 0 to {source.size - 1}"
        )
    folder = folder.absolute()
    partial = folder.with_name(folder.name + ".partial")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder; name another, or remove it to export anew")
    if partial.exists() and not (partial / MARK).is_file() and not (partial.is_dir() and not any(partial.iterdir())):
        raise DataError(
            f"{partial} is where an export to {folder.name} is put together, but holds files of something else; "
            "move it, or name another folder"
        )
    try:
        num_images = _write(source, range(start, start + count), partial, progress)
        partial.replace(folder)
        (folder / MARK).unlink()
    except OSError as error:
        raise DataError(
            f"the export to {folder} stopped: {error}. Put that right and export again; it goes on"
        ) from error
    return ExportReport(folder / RECORDS, count, num_images)


def _write(source: DataSource, indices: range, partial: Path, progress: Callable[[int], None] | None) -> int:
    """Fills ``partial`` and returns how many images it holds."""
    (partial / IMAGES).mkdir(parents=True, exist_ok=True)
    (partial / MARK).touch()
    written: set[str] = set()
    with (partial / RECORDS).open("wb") as records:
        for done, index in enumerate(indices, start=1):
            conversation = source[index]
            assert isinstance(conversation, Conversation)  # export_llava looked
            names = tuple(f"{IMAGES}/{index:08d}-{number}.png" for number in range(len(conversation.images)))
            records.write(_encode(index, conversation, names))
            for name, image in zip(names, conversation.images, strict=True):
                _write_image(partial / name, to_rgb(image))
            written.update(names)
            if progress is not None:
                progress(done)
        records.flush()
        os.fsync(records.fileno())
    for path in (partial / IMAGES).iterdir():
        if f"{IMAGES}/{path.name}" not in written:  # of an attempt with another start or count
            path.unlink()
    return len(written)


def _encode(index: int, conversation: Conversation, names: tuple[str, ...]) -> bytes:
    record = Record(conversation.turns, names, conversation.id, conversation.task)
    value = record_to_json(record)
    try:
        came_back = parse_record(value)
    except BadRecordError as error:
        raise DataError(f"conversation {index} ({conversation.id!r}) cannot be stored: {error}") from error
    if came_back != record:
        raise DataError(
            f"conversation {index} ({conversation.id!r}) would not come back as it is: "
            "its one image has no <image> mark in a question"
        )
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write_image(path: Path, image: Image.Image) -> None:
    if path.exists():
        try:
            there = read_image(path, str(path))
        except BadRecordError:
            pass  # torn by a kill: written anew below
        else:
            if there.size == image.size and there.tobytes() == image.tobytes():
                return
    image.save(path, format="PNG")
