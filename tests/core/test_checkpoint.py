"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from linearize.distill import checkpoint as module
from linearize.distill.checkpoint import Checkpoint, read_latest, write_checkpoint
from linearize.errors import RunError
from linearize.files.json_file import write_json


def state(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        weights={"0.a": torch.full((2, 3), float(step)), "0.b": torch.arange(6.0).view(2, 3).T},
        optimizer={"0.0.step": torch.tensor(float(step))},
        progress={"step": step, "first_loss": 0.1 + 0.2, "sites": {"0": 1e-300}},
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    written = state(7)
    write_checkpoint(tmp_path, written)
    read, damaged = read_latest(tmp_path)
    assert damaged == []
    assert read is not None
    assert (read.step, read.progress) == (7, written.progress)
    for name, tensor in {**written.weights, **written.optimizer}.items():
        assert torch.equal({**read.weights, **read.optimizer}[name], tensor)


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert read_latest(tmp_path) == (None, [])
    assert read_latest(tmp_path / "nowhere") == (None, [])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 9, 10, 200):
        write_checkpoint(tmp_path, state(step))
    assert steps(tmp_path) == [10, 200]


def test_a_copy_that_somebody_made_of_a_checkpoint_stays(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000001-best")
    for step in (2, 3, 4):
        write_checkpoint(tmp_path, state(step))
    assert sorted(os.listdir(tmp_path)) == ["step-00000001-best", "step-00000003", "step-00000004"]
    found, damaged = read_latest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (4, [])


def test_weights_of_a_checkpoint_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_checkpoint(tmp_path, state(1))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "step-00000001").iterdir()} == {0o640}


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(3))
    write_checkpoint(tmp_path, Checkpoint(3, {"0.a": torch.zeros(1)}, {}, {}))
    read, _ = read_latest(tmp_path)
    assert read is not None
    assert list(read.weights) == ["0.a"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    write_checkpoint(tmp_path, state(1))
    write_checkpoint(tmp_path, state(2))
    path = tmp_path / "step-00000002" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "flip": flipped, "empty": b""}[damage])
    read, damaged = read_latest(tmp_path)
    assert read is not None
    assert read.step == 1
    assert len(damaged) == 1
    assert "step-00000002 is damaged" in damaged[0]


def test_what_a_kill_left_half_written_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    partial = tmp_path / ".step-00000002.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    read, damaged = read_latest(tmp_path)
    assert read is not None
    assert (read.step, damaged) == (1, [])
    write_checkpoint(tmp_path, state(2))
    assert steps(tmp_path) == [1, 2]
    assert not partial.exists()


def test_a_full_disk_leaves_the_older_checkpoints_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, state(1))
    monkeypatch.setattr(module, "save_file", no_space)
    with pytest.raises(
        RunError, match=r"cannot write checkpoint step-00000002 .*No space left.*type the same command again"
    ):
        write_checkpoint(tmp_path, state(2))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-00000001"]
    write_checkpoint(tmp_path, state(2))
    read, _ = read_latest(tmp_path)
    assert read is not None
    assert read.step == 2


def test_a_write_that_the_system_stops_half_way_leaves_the_older_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    large = Checkpoint(2, {"0.a": torch.zeros(20_000)}, {}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # half of the weights' bytes
    try:
        with pytest.raises(RunError, match="cannot write checkpoint step-00000002"):
            write_checkpoint(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_checkpoint_under_another_steps_name_is_damaged(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000005")
    read, damaged = read_latest(tmp_path)
    assert read is None
    assert "manifest.json is of step 1" in damaged[0]


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "below" / "done.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(RunError, match=r"cannot write .*done.json: .*No space left.* Make room"):
        write_json(path, {"a": 2})
    assert path.read_text(encoding="utf-8") == '{\n "a": 1\n}\n'
