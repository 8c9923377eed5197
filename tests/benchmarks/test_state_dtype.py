"""The benchmark of the state's dtype runs on a CPU and tells the state's error from that of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkout import ROOT, python

SCRIPT = ROOT / "benchmarks" / "state_dtype.py"


@pytest.mark.slow
def test_every_variant_is_compared_with_float32(tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--device", "cpu", "--prompt", "24", "--chunk", "10", "--steps", "16")
    done = python(SCRIPT, *options, "--mixers", "retnet", "sliding_window")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "state_dtype.json").read_text())
    assert found["environment"]["device"] == "cpu"
    of = {(one["student"], one["in_bfloat16"]): one for one in found["found"]}
    assert len(of) == 6
    assert 0 < of["retnet", "state"]["error"] < of["retnet", "weights"]["error"] < 0.1
    assert of["sliding_window", "state"]["error"] == 0, "it has no memory in float32"
    assert of["retnet", "both"]["state_bytes"] < of["retnet", "weights"]["state_bytes"]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| retnet", "| sliding"))]
    assert [row[1] for row in rows] == [f"{of[name, 'state']['error']:.2%}" for name in ("retnet", "sliding_window")]
