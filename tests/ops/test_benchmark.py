"""The backend benchmark runs on a CPU, says what it found, and joins what several processes found."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, python

SCRIPT = ROOT / "benchmarks" / "backends.py"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return python(SCRIPT, "--device", "cpu", *words)


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "backends.json"
    done = run("--smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "| Mamba-2 mixer | torch |" in done.stdout
    return out


def test_the_backend_benchmark_runs_on_a_cpu_and_the_reference_agrees_with_itself(report_file: Path) -> None:
    report = json.loads(report_file.read_text())
    exact = [row for row in report["agreement"] if row["dtype"] == "fp32"]
    assert exact
    assert all(row["output"] == row["state"] == row["gradient"] == 0 for row in exact)
    families = {"Mamba-2", "GLA", "DeltaNet", "Gated DeltaNet", "KDA", "GSA"}
    assert {row["op"] for row in report["times"]} == {"softmax attention", "convolution", "Mamba-2 mixer", *families}
    assert {row["level"] for row in report["agreement"]} == {"mixer", *families}


def test_rounding_to_bf16_alone_costs_the_compared_mixer_little(report_file: Path) -> None:
    # Else a wrong kernel could hide behind rounding. bf16 holds 8 bits; a layer rounds some ten times.
    rows = [row for row in json.loads(report_file.read_text())["agreement"] if row["dtype"] == "bf16"]
    assert rows
    assert all(0 < row["output"] < 0.03 and row["gradient"] < 0.05 for row in rows)


def test_results_of_two_processes_make_one_page_that_keeps_what_stands_around_it(
    report_file: Path, tmp_path: Path
) -> None:
    times, page = tmp_path / "times.json", tmp_path / "page.md"
    other: dict[str, Any] = json.loads(report_file.read_text())
    other |= {"agreement": [], "command": "python benchmarks/backends.py --repeats 1"}
    other["times"] = [{**row, "tokens": 128} for row in other["times"]]
    times.write_text(json.dumps(other))
    for remark in ("", "Written by hand.\n"):
        done = run("--merge", report_file, times, "--write", page, "--commit", "abc123")
        assert done.returncode == 0, done.stderr
        text = page.read_text()
        assert text.endswith(remark)
        page.write_text(text + "Written by hand.\n")
    assert "| op | backend | T 64 | T 128 |" in text
    assert "at commit abc123" in text
    assert "    python benchmarks/backends.py --device cpu --smoke\n" in text
    assert str(tmp_path) not in text


def test_results_of_different_machines_are_not_joined(report_file: Path, tmp_path: Path) -> None:
    other = json.loads(report_file.read_text())
    other["environment"]["device"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    done = run("--merge", report_file, tmp_path / "other.json")
    assert done.returncode != 0
    assert "do not belong together: device is" in done.stderr


def test_a_part_that_fails_is_noted_and_leaves_the_numbers_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    journal = importlib.import_module("backends").Journal({"times": [], "failures": []}, tmp_path / "times.json")
    row = importlib.import_module("backends_timing").Time("convolution", "torch", 8, 1.0, 2.0)

    def fail(tokens: int) -> list[object]:
        raise TypeError(f"no kernel for {tokens}\nand a long trace")

    journal.attempt("times", "recurrence of fla, T 8", fail, 8)
    journal.attempt("times", "convolution of torch, T 8", lambda: [row])
    saved = json.loads((tmp_path / "times.json").read_text())
    assert saved["failures"] == ["recurrence of fla, T 8: TypeError: no kernel for 8"]
    assert [found["op"] for found in saved["times"]] == ["convolution"]


def test_only_what_is_asked_for_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "some.json"
    done = run("--smoke", "--ops", "KDA", "convolution", "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {row["level"] for row in report["agreement"]} == {"KDA"}
    assert {row["op"] for row in report["times"]} == {"KDA", "convolution"}


def test_times_of_kernels_that_are_hardly_tuned_are_refused() -> None:
    done = run("--few-tunings")
    assert done.returncode == 2
    assert "--few-tunings gives worthless times" in done.stderr
