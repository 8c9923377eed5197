"""Checkpoints that are whole or not there: written beside, hashed, two kept, read without executing anything."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from linearize.distill.finite import not_finite
from linearize.errors import RunError
from linearize.files.names import file_sha256
from linearize.files.owned_folder import give_default_modes
from linearize.files.whole_file import flush

KEPT = 2
PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a stage after ``step`` optimizer steps.

    Attributes:
        weights: every mixer parameter, trained in this stage or not.
        optimizer: flat optimizer state.
        progress: plain numbers (tokens, seconds, first loss); JSON-able.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds a checkpoint to ``folder`` and removes all but the newest two.

    It is written beside its place, with a hash of every file, flushed to the disk and renamed: a kill or a full disk at
    any moment leaves the older ones as they were.

    Raises:
        RunError: the disk is full or not writable; says what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file({k: v.contiguous() for k, v in checkpoint.weights.items()}, partial / "weights.safetensors")
        save_file({k: v.contiguous() for k, v in checkpoint.optimizer.items()}, partial / "optimizer.safetensors")
        (partial / "progress.json").write_text(json.dumps(checkpoint.progress), encoding="utf-8")
        give_default_modes(list(partial.glob("*.safetensors")), like=partial / "progress.json")
        hashes = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
        manifest = {"step": checkpoint.step, "sha256": hashes}
        (partial / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for path in partial.iterdir():
            flush(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"cannot write checkpoint {final.name} to {folder}: {error}. Earlier checkpoints are whole: "
            "make room or fix the permissions and type the same command again"
        ) from error
    for old in _folders(folder)[:-KEPT]:
        shutil.rmtree(old)


def read_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each damaged one that was passed over."""
    found: Checkpoint | None = None
    damaged: list[str] = []
    for path in reversed(_folders(folder)):
        try:
            found = _read(path)
            break
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error})")
    instead = "no other is whole, so the stage starts over" if found is None else f"step {found.step} is used instead"
    return found, [f"{line}; {instead}" for line in damaged]


def _read(path: Path) -> Checkpoint:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if path.name != f"{PREFIX}{manifest['step']:08d}":
        raise ValueError(f"manifest.json is of step {manifest['step']}")
    for name, expected in manifest["sha256"].items():
        found = file_sha256(path / name)
        if found != expected:
            raise ValueError(f"{name} has hash {found[:12]}, {expected[:12]} was written")
    checkpoint = Checkpoint(
        step=int(manifest["step"]),
        weights=load_file(path / "weights.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        progress=json.loads((path / "progress.json").read_text(encoding="utf-8")),
    )
    # Versions before 0.2 wrote what a diverged step left.
    if bad := not_finite(checkpoint.weights | checkpoint.optimizer):
        raise ValueError(f"{bad[0]} is not finite")
    return checkpoint


def _folders(folder: Path) -> list[Path]:
    named = re.compile(rf"{PREFIX}\d{{8,}}")  # not what somebody copied beside them
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and named.fullmatch(path.name))
