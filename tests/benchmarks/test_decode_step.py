"""The benchmark of ways to compile a step runs on a CPU, where every graph runs as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkout import ROOT, python

SCRIPT = ROOT / "benchmarks" / "decode_step.py"


@pytest.mark.slow
def test_every_way_leaves_a_line(tmp_path: Path) -> None:
    sizes = ("--shape", "smollm2-135m", "--prompt", "8", "--steps", "10", "--rounds", "1", "--device", "cpu")
    ways = ("default", "waiting", "unchecked")
    done = python(SCRIPT, *sizes, "--models", "linear", "--ways", *ways, "--out", tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    first, *lines = map(json.loads, (tmp_path / "decode_step.jsonl").read_text().splitlines())
    assert first["environment"]["device"] == "cpu"
    assert [line["way"] for line in lines] == list(ways)
    assert all(line["step_ms"] > 0 and len(line["each_ms"]) == 1 for line in lines), lines


@pytest.mark.slow
def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    done = python(SCRIPT, "--shape", "smollm2-135m", "--budget", "0", "--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "decode_step.jsonl").read_text().splitlines()][1:]
    assert {line["left_out"] for line in lines} == {"no time"}
    assert {line["model"] for line in lines} == {"linear", "hybrid"}
