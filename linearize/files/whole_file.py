"""Files that are written whole or not at all, by whichever of several processes. Imports no torch."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_WRITE_S = 3600.0
"""A part that is older belongs to nobody, on whatever machine it was begun."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the place of a part beside ``path``, which takes its name once it is written and on the disk.

    A reader sees the old file or the new one, whenever the process dies. Each process writes a part of its own, for
    several may write one file, such as the answers that runs of a comparison share; what killed ones left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.part")
    ours = re.compile(rf"\.{re.escape(path.name)}\.([^.]*)\.(\d+)\.part")
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if (named := ours.fullmatch(other.name)) and _is_left_over(other, *named.groups()):
            other.unlink(missing_ok=True)
    try:
        yield part
        flush(part)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _machine() -> str:
    return socket.gethostname().replace(".", "-")


def _is_left_over(part: Path, machine: str, process: str) -> bool:
    try:
        if time.time() - part.stat().st_mtime > LONGEST_WRITE_S:
            return True
        if machine != _machine():
            return False
        os.kill(int(process), 0)
    except (FileNotFoundError, PermissionError):
        return False  # gone, or another user's process
    except ProcessLookupError:
        return True
    return False
