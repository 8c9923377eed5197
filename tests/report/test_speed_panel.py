"""The report of a run shows its bench, where there is one that can be read."""

from __future__ import annotations

import json
from pathlib import Path

from speeds import make_bench

from linearize.report.page import write_report
from linearize.report.speed_findings import speed_findings


def test_a_run_that_was_benched_has_the_panel_and_another_has_not(run_folder: Path) -> None:
    write_report(run_folder)
    assert "What linear time buys" not in (run_folder / "report" / "index.html").read_text()
    (run_folder / "bench").mkdir()
    (run_folder / "bench" / "bench.json").write_text(json.dumps(make_bench().as_json()))
    write_report(run_folder)
    page = (run_folder / "report" / "index.html").read_text()
    assert page.count("What linear time buys") == 1
    assert all(finding.split("; ")[0] in page for finding in speed_findings(make_bench()))
    assert "NVIDIA H200, bfloat16, torch 2.11.0, commit abc" in page
    assert "<td>10.0x</td>" in page  # of the last engine's table, which is no text with its brackets escaped
    assert (run_folder / "report" / "speed.png").is_file()
    assert "](speed.png)" in (run_folder / "report" / "report.md").read_text()


def test_a_bench_that_cannot_be_read_leaves_the_report_as_it_was(run_folder: Path) -> None:
    write_report(run_folder)
    before = (run_folder / "report" / "index.html").read_bytes()
    (run_folder / "bench").mkdir()
    (run_folder / "bench" / "bench.json").write_text("{")
    write_report(run_folder)
    assert (run_folder / "report" / "index.html").read_bytes() == before
