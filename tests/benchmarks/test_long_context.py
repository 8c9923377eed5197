"""The benchmark of long contexts runs on a CPU and compares every model at every length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "long_context.py"


def test_every_model_is_measured_at_every_length() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--device", "cpu"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1]) for row in rows] == [
        (tokens, model) for tokens in ("16", "64") for model in ("teacher", "linear", "hybrid")
    ]
    teacher, linear = rows[0], rows[1]
    assert float(linear[4]) == pytest.approx(float(teacher[3]) / float(linear[3]), rel=0.1)
