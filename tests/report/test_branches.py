"""What the report says of branches: in every place where a person looks, and nowhere for a student without any."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from linearize.evaluate.branches.section import branch_section
from linearize.pipeline.display import ConsoleDisplay
from linearize.report.page import write_report
from linearize.report.results import write_results

WHOLE = {"kl": 0.2, "top1_agreement": 0.9, "student": 0.8, "site_error": 0.1}
BRANCHES = {
    "questions": 16,
    "whole": WHOLE,
    "each": {
        "window": {
            "share": 0.996, "sites": {"0": 0.995, "1": 0.997},
            "without": {"kl": 3.5, "top1_agreement": 0.1, "student": 0.05, "site_error": 0.9},
        },
        "linear": {"share": 0.004, "sites": {"0": 0.005, "1": 0.003}, "without": {**WHOLE, "kl": 0.21}},
    },
}  # fmt: skip
WARNING = "the student ignores its linear branch: it adds 0.4 % of what its sites put out"


EVALUATED = {"evaluators": {"branches": {"results": BRANCHES, "section": asdict(branch_section(BRANCHES))}}}
OF_BEFORE_EVALUATORS = {"branches": BRANCHES}


@pytest.fixture(params=[EVALUATED, OF_BEFORE_EVALUATORS], ids=["now", "before evaluators"])
def branched_run(run_folder: Path, request: pytest.FixtureRequest) -> Path:
    path = run_folder / "evaluation" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **request.param}))
    return run_folder


def test_branches_stand_in_the_results_the_page_and_the_markdown(branched_run: Path) -> None:
    assert write_results(branched_run)["branches"] == BRANCHES
    write_report(branched_run)
    page = (branched_run / "report" / "index.html").read_text()
    text = (branched_run / "report" / "report.md").read_text()
    for written in (page, text):
        assert "What each branch does" in written
        assert WARNING in written
    for cell in ("0.4 %", "2 of 2", "0.200 → 3.50", "80.0 % → 5.0 %"):
        assert f"<td>{cell}</td>" in page
        assert f"| {cell} |" in text


def test_the_terminal_shows_them_with_the_retention(branched_run: Path) -> None:
    console = Console(width=120, file=io.StringIO())
    ConsoleDisplay(console).results(write_results(branched_run), Path("index.html"))
    shown: Any = console.file
    (line,) = [line for line in shown.getvalue().splitlines() if line.strip().startswith("linear")]
    assert line.split()[1:3] == ["0.4", "%"]
    assert "0.200 → 0.210" in line


def test_a_student_without_branches_has_no_word_of_them(run_folder: Path) -> None:
    assert write_results(run_folder)["branches"] is None
    write_report(run_folder)
    assert "branch" not in (run_folder / "report" / "index.html").read_text()
    assert "branch" not in (run_folder / "report" / "report.md").read_text()
