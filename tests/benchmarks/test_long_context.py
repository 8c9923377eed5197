"""The benchmark of long contexts runs on a CPU and compares every model at every length."""

from __future__ import annotations

import pytest
from checkout import ROOT, python

SCRIPT = ROOT / "benchmarks" / "long_context.py"


def test_every_model_is_measured_at_every_length() -> None:
    done = python(SCRIPT, "--smoke", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1]) for row in rows] == [
        (tokens, model) for tokens in ("16", "64") for model in ("teacher", "linear", "hybrid")
    ]
    teacher, linear = rows[0], rows[1]
    assert float(linear[4]) == pytest.approx(float(teacher[3]) / float(linear[3]), rel=0.1)
