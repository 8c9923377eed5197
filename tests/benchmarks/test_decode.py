"""The benchmark of decoding runs on a CPU and compares every model with both kinds of cache."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from checkout import ROOT, python

SCRIPT = ROOT / "benchmarks" / "decode.py"


def test_every_model_answers_with_both_caches_in_every_round(tmp_path: Path) -> None:
    options = ("--out", tmp_path / "new", "--mixer", "simple_gla", "--prefill-chunk", "10")
    done = python(SCRIPT, "--smoke", "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "new" / "decode.json").read_text())
    cells = {(cell["prompt_tokens"], cell["model"], cell["cache"]): cell for cell in found["cells"]}
    assert cells.keys() == {
        (tokens, model, cache)
        for tokens in (16, 64)
        for model in ("teacher", "linear", "hybrid")
        for cache in ("dynamic", "static")
    }
    assert all(len(cell["answers"]) == 2 for cell in cells.values())
    assert found["environment"]["device"]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(cells)
    medians = {key: statistics.median(one["token_ms"] for one in cell["answers"]) for key, cell in cells.items()}
    for row in rows:
        tokens, model, cache = int(row[0]), row[1], row[2]
        assert float(row[3]) == pytest.approx(medians[tokens, model, cache], abs=0.01)
        # Both times are rounded to hundredths of a millisecond in the table, and their ratio to hundredths.
        ratio = medians[tokens, "teacher", "static"] / medians[tokens, model, cache]
        assert float(row[-1].rstrip("x")) == pytest.approx(ratio, abs=0.01)
