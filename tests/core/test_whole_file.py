"""Files that are whole whenever a process dies, and the parts that dead processes leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from checkout import python

from linearize.files.whole_file import LONGEST_WRITE_S, write_text, written_whole

KILLED = """
import os, sys
from pathlib import Path
from linearize.files.whole_file import written_whole
with written_whole(Path(sys.argv[1])) as part:
    part.write_text("half")
    os._exit(9)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_writer_that_is_killed_leaves_the_old_file_and_the_next_one_removes_its_part(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page [1].html"
    write_text(path, "old")
    killed = python("-c", KILLED, path)
    assert killed.returncode == 9
    assert path.read_text() == "old"
    assert len(names(path.parent)) == 2
    write_text(path, "new")
    assert (path.read_text(), names(path.parent)) == ("new", {path.name})


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a machine that loses power leaves an empty file under the name of a whole one."""
    path, synced = tmp_path / "page.html", []
    write_text(path, "old")
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(path, "new")
    assert synced == [(path.stat().st_ino, "old")]


def test_a_part_of_a_process_that_may_live_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with written_whole(path) as part:
        part.write_text("new")
        of_parent = part.with_name(part.name.replace(str(os.getpid()), str(os.getppid())))
    ended = python("-c", "import os; print(os.getpid())").stdout.strip()
    elsewhere = tmp_path / f".page.html.elsewhere.{ended}.part"  # a process of that number may live on that machine
    for living in (of_parent, elsewhere):
        living.touch()
    write_text(path, "newer")
    assert names(tmp_path) == {path.name, of_parent.name, elsewhere.name}
    for living in (of_parent, elsewhere):
        os.utime(living, (0, living.stat().st_mtime - LONGEST_WRITE_S - 60))
    write_text(path, "newest")
    assert names(tmp_path) == {path.name}


@pytest.mark.parametrize("name", [".page.html.backup.part", ".page.html.of.mine.1.part", ".page.html.host.first.part"])
def test_an_old_file_that_only_looks_like_a_part_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    os.utime(tmp_path / name, (0, 0))
    write_text(tmp_path / "page.html", "new")
    assert names(tmp_path) == {"page.html", name}


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        write_text(path, "half" * 10_000 + "\udc00")
    assert (path.read_text(), names(tmp_path)) == ("old", {path.name})
