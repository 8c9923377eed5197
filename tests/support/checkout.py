"""The checkout that is tested, and Python processes that see it, installed or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "linearize"
DOCS, EXAMPLES, FIXTURES = ROOT / "docs", ROOT / "examples", ROOT / "tests" / "fixtures"
TINY_TEACHER = FIXTURES / "hovle_tiny"
IN_TREE = tuple(ROOT / folder for folder in ("", "teachers", "students", "plugins"))

SAYS_WHAT_IT_IMPORTED = """
import sys
from linearize.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("IMPORTED", *sorted(sys.modules))
"""


def environment(*before: Path, **more: str) -> dict[str, str]:
    """Of a process that imports the checkout, after the folders ``before`` it, and computes with one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*before, *IN_TREE))), "OMP_NUM_THREADS": "1", **more}


def python(*arguments: str | Path, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, without an input; ``options`` are those of ``subprocess.run``."""
    options = {"env": environment(), "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, **options)


def linearize(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return python("-m", "linearize", *arguments, **options)


def imported_by(*arguments: str | Path, **options: Any) -> set[str]:
    """The modules in a process of the command line at its end, which is a success."""
    done = python("-c", SAYS_WHAT_IT_IMPORTED, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("IMPORTED ")[2].split())


def tiny_recipe() -> dict[str, Any]:
    """A recipe without problems: a tiny teacher, two stages of a few steps, no questions."""
    return {
        "run": {"name": "tiny"},
        "teacher": {"type": "hovle", "checkpoint": str(TINY_TEACHER)},
        "student": {"mixer": {"type": "mamba2"}},
        "data": {"type": "glance"},
        "stages": [
            {"name": "align", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 2, "lr": 1e-3},
            {"name": "distill", "objective": {"type": "logit_kl"}, "train": ["new", "qkv"], "steps": 3, "lr": 1e-3},
        ],
    }
