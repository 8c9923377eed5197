"""Folders that are replaced whole: nothing of others goes, whatever a kill left, and our files follow the umask."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from linearize.errors import CheckpointError
from linearize.files.owned_folder import MANIFEST, replace_folder


def _never(folder: Path) -> Collection[str]:
    return ()


def _writes(**texts: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, text in texts.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def _texts(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ours with two files, one in a subfolder."""
    replace_folder(tmp_path / "student", _writes(weights="old", extra__card="old"), _never)
    return tmp_path / "student"


def test_files_of_others_stay_and_ours_go(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "extra" / "plan.txt").write_text("mine too")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    replace_folder(folder, _writes(tokens="new"), _never)
    assert _texts(folder) == {"tokens": "new", "notes.txt": "mine", "extra/plan.txt": "mine too", ".git/HEAD": "main"}
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_a_link_of_others_stays_a_link_and_what_it_names_is_untouched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights").write_text("elsewhere")
    (folder / "link").symlink_to(tmp_path / "data")
    replace_folder(folder, _writes(weights="new"), _never)
    assert (folder / "link").is_symlink()
    assert _texts(tmp_path / "data") == {"weights": "elsewhere"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "thesis.tex"])
def test_a_folder_without_our_list_is_refused_and_stays_as_it_was(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=name):
        replace_folder(tmp_path, _writes(weights="new"), _never)
    assert _texts(tmp_path) == {name: "{}"}


def test_a_file_of_ours_that_somebody_changed_is_not_overwritten(folder: Path) -> None:
    (folder / "extra" / "card").write_text("my own words")
    with pytest.raises(CheckpointError, match=r"extra/card in .* changed since"):
        replace_folder(folder, _writes(weights="new", extra__card="new"), _never)
    assert _texts(folder) == {"weights": "old", "extra/card": "my own words"}


def test_a_new_name_does_not_take_the_place_of_a_file_of_others(folder: Path) -> None:
    (folder / "tokens").write_text("mine")
    with pytest.raises(CheckpointError, match=r"tokens in .* is not linearize's"):
        replace_folder(folder, _writes(weights="new", tokens="new"), _never)
    assert _texts(folder) == {"weights": "old", "extra/card": "old", "tokens": "mine"}
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_a_list_of_a_newer_version_or_a_damaged_one_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"format": 9, "sha256": {}}))
    with pytest.raises(CheckpointError, match="has format 9"):
        replace_folder(folder, _writes(weights="new"), _never)
    (folder / MANIFEST).write_text("[1")
    with pytest.raises(CheckpointError, match="cannot be read"):
        replace_folder(folder, _writes(weights="new"), _never)
    assert _texts(folder) == {"weights": "old", "extra/card": "old"}


class Kill(BaseException):
    """What the tests call a kill: nothing is tidied up after it."""


@pytest.mark.parametrize("moment", range(8))
def test_after_a_kill_between_any_two_renames_or_removals_the_next_call_finds_everything(
    moment: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "notes.txt").write_text("mine")
    calls = 0

    def killed(original: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Kill
            return original(*args, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr("linearize.files.owned_folder.shutil.rmtree", lambda *args, **options: None)
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(Path, name, killed(getattr(Path, name)))
        try:
            replace_folder(folder, _writes(weights="new"), _never)
        except Kill:
            assert calls == moment + 1
    everything = [_texts(path) for path in folder.parent.iterdir()]
    assert (
        any({"weights": "old"}.items() <= texts.items() for texts in everything) or _texts(folder)["weights"] == "new"
    )
    assert any("notes.txt" in texts for texts in everything)
    replace_folder(folder, _writes(weights="newer"), _never)
    assert _texts(folder) == {"weights": "newer", "notes.txt": "mine"}
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_folders_beside_it_that_only_look_like_ours_stay(folder: Path) -> None:
    for name in (".student.0123abcd.partial", ".student.0123abcd.former", ".student.mine.partial"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "thesis.tex").write_text("mine")
    before = {path.name for path in folder.parent.iterdir()}
    replace_folder(folder, _writes(weights="new"), _never)
    assert {path.name for path in folder.parent.iterdir()} == before


def test_what_another_process_is_writing_is_not_taken_for_left_over(folder: Path) -> None:
    def write(partial: Path) -> None:
        _writes(weights="outer")(partial)
        replace_folder(folder, _writes(weights="inner"), _never)
        assert partial.is_dir()

    replace_folder(folder.parent / "student", write, _never)
    assert _texts(folder) == {"weights": "outer"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_text("new")
        (folder / "weights").chmod(0o600)

    before = os.umask(umask)
    try:
        replace_folder(tmp_path / "student", write, _never)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "student").iterdir()}
    assert modes == {0o666 & ~umask}
