"""Folders that are replaced whole, and in which nothing but our own files is ever removed. Imports no torch.

A list of our files with their hashes, ``linearize_files.json``, lies in each such folder. A file that is not on the
list, or that was changed since, is somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from linearize.errors import CheckpointError
from linearize.files.names import file_sha256
from linearize.files.whole_file import flush

MANIFEST = "linearize_files.json"
FORMAT = 1

Earlier = Callable[[Path], Collection[str]]
"""Names of our files in a folder that was written before there were lists; none where it is not ours."""


def replace_folder(folder: Path, write: Callable[[Path], None], earlier: Earlier) -> None:
    """Lets ``write`` fill a folder beside ``folder``, flushes it to the disk and only then gives it the name.

    Files of others that lie in ``folder`` stay there. A kill at any moment leaves the old folder, the new one, or the
    old one as ``.NAME.*.former``, which the next call puts back; that call also removes what a killed one had begun.

    Raises:
        CheckpointError: the folder holds files and none is ours, one of ours was changed, or a new file would take the
            place of somebody else's. Nothing was changed then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy_up(folder, earlier)
    ours = own_files(folder, earlier)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    with (partial / MANIFEST).open("w", encoding="utf-8") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)  # until it is closed, which a kill does too
        try:
            write(partial)
            written = [path for path in partial.rglob("*") if path.is_file() and path.name != MANIFEST]
            names = {path.relative_to(partial).as_posix(): path for path in sorted(written)}
            _refuse_others(folder, names.keys() - ours)
            hashes = {name: file_sha256(path) for name, path in names.items()}
            json.dump({"format": FORMAT, "sha256": hashes}, manifest, indent=1)
            manifest.flush()
            give_default_modes(written, like=partial / MANIFEST)
            for path in (*written, partial / MANIFEST, partial):
                flush(path)
            _swap(folder, partial, ours)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def own_files(folder: Path, earlier: Earlier) -> set[str]:
    """Our files in ``folder`` by their relative names; none where it is empty or absent.

    Raises:
        CheckpointError: it holds files and none is ours, or one of ours was changed.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return set()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a student is a folder: give another name")
    if not (folder / MANIFEST).is_file():
        ours = set(earlier(folder))
        if not ours:
            raise CheckpointError(
                f"{folder} holds files that linearize did not write ({_some(os.listdir(folder))}), which it never "
                "replaces; name a new or an empty folder"
            )
        return ours
    hashes = _read_manifest(folder)
    changed = [name for name, sha256 in hashes.items() if not _is_unchanged(folder / name, sha256)]
    if changed:
        raise CheckpointError(
            f"{_some(changed)} in {folder} changed since linearize wrote the folder, and would be lost; move what you "
            "want to keep to another place, or name another folder"
        )
    return {*hashes, MANIFEST}


def give_default_modes(paths: Collection[Path], *, like: Path) -> None:
    """Gives files the mode of ``like``, which the umask chose; safetensors' can be read by their owner alone."""
    mode = like.stat().st_mode & 0o777
    for path in paths:
        path.chmod(mode)


def _read_manifest(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, hashes = content["format"], dict(content["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST} cannot be read ({error!r}), so whose files these are is unknown; name another folder"
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST} has format {version}, this version of linearize knows {FORMAT}; name another folder, "
            "or update linearize"
        )
    return hashes


def _refuse_others(folder: Path, names: Collection[str]) -> None:
    taken = [name for name in names if os.path.lexists(folder / name)]
    if taken:
        raise CheckpointError(
            f"{_some(taken)} in {folder} is not linearize's and would be overwritten; move it, or name another folder"
        )


def _swap(folder: Path, partial: Path, ours: Collection[str]) -> None:
    former = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.former")
    if folder.exists():
        folder.rename(former)
    partial.rename(folder)
    if former.exists():
        _empty(former, folder, ours)
    flush(folder.parent)


def _empty(former: Path, folder: Path, ours: Collection[str], prefix: str = "") -> None:
    """Removes our files from ``former`` and moves all others to ``folder``; what has no place there stays."""
    # The list goes last: without it nobody would know whose the rest is.
    for path in sorted(former.iterdir(), key=lambda path: path.name == MANIFEST):
        name, target = prefix + path.name, folder / path.name
        if name in ours:
            path.unlink()
        elif path.is_dir() and not path.is_symlink() and (target.is_dir() or _holds(name, ours)):
            target.mkdir(exist_ok=True)
            _empty(path, target, ours, f"{name}/")
        elif not os.path.lexists(target):
            path.rename(target)
    with contextlib.suppress(OSError):  # not empty
        former.rmdir()


def _holds(name: str, ours: Collection[str]) -> bool:
    return any(own.startswith(f"{name}/") for own in ours)


def _tidy_up(folder: Path, earlier: Earlier) -> None:
    """Removes what a killed call had begun, and puts the folder back that one had moved away."""
    pattern = f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}"
    for partial in folder.parent.glob(f"{pattern}.partial"):
        if _is_abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)
    for former in folder.parent.glob(f"{pattern}.former"):
        try:
            ours = own_files(former, earlier)
        except CheckpointError:
            continue
        if folder.exists():
            _empty(former, folder, ours)
        else:
            former.rename(folder)


def _is_abandoned(partial: Path) -> bool:
    """Whether a folder that we began to fill is filled by no process any more."""
    try:
        with (partial / MANIFEST).open("r+", encoding="utf-8") as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # no such file, so not ours; or its writer still holds it
        return False
    return True


def _is_unchanged(path: Path, sha256: str) -> bool:
    return not os.path.lexists(path) or (path.is_file() and not path.is_symlink() and file_sha256(path) == sha256)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:4]
    return ", ".join(first) + (", ..." if len(names) > 4 else "")
