"""Folders that say of themselves what those of students and runs do, and hold no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkout import TINY_TEACHER

from linearize.files.run_folder import RunFolder

TEACHER = {"type": "hovle", "checkpoint": str(TINY_TEACHER)}


def bare_student(folder: Path, teacher: Mapping[str, Any] = TEACHER) -> Path:
    """A student's folder."""
    folder.mkdir(parents=True)
    described = {"extra": {"recipe": {"teacher": teacher}}}
    (folder / "config.json").write_text(json.dumps({"model_type": "linearize_hovle", "linearize": described}))
    return folder


def bare_run(folder: Path, *, finished: bool) -> Path:
    """The folder of a run."""
    bare_student(folder / "student")
    run = RunFolder(folder)
    run.recipe.write_text('[run]\nname = "x"\n')
    if finished:
        run.finish("key")
    return folder
