import io
import json

import pytest
from rich.console import Console

from linearize.report.results import write_results
from linearize.report.tables import markdown_report, retention_table, stage_remark, verdict


def printed(results, width):
    console = Console(width=width, file=io.StringIO())
    console.print(retention_table(results))
    return console.file.getvalue()


def test_results_hold_what_programs_are_promised(run_folder):
    results = write_results(run_folder)
    assert json.loads((run_folder / "report" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["run"] == "mmmamba-hovle"
    for task in results["tasks"].values():
        assert {"teacher", "student", "retention", "questions", "teacher_interval", "student_interval"} <= set(task)
        assert task["retention"] == pytest.approx(task["student"] / task["teacher"])
    kept = [task["retention"] for task in results["tasks"].values()]
    assert abs(results["average_retention"] - sum(kept) / len(kept)) < 1e-12
    assert [stage["name"] for stage in results["stages"]] == ["align-new", "align-mixer", "distill"]
    assert set(results) >= {"kl", "top1_agreement", "dials", "environment"}


def test_results_of_a_run_that_was_not_evaluated_say_so_by_none(run_folder):
    (run_folder / "evaluation" / "summary.json").unlink()
    results = write_results(run_folder)
    assert (results["tasks"], results["average_retention"], results["kl"]) == ({}, None, None)
    assert len(results["stages"]) == 3
    assert "not evaluated" in verdict(results)


def test_the_terminal_table_of_short_names_fits_80_columns_uncut(run_folder):
    results = write_results(run_folder)
    text = printed(results, 80)
    assert "…" not in text
    for name, task in results["tasks"].items():
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert f"{100 * task['teacher']:.1f} %" in line
        assert f"{100 * task['retention']:.1f} %" in line
    assert f"{100 * results['average_retention']:.1f} %" in text


def test_a_task_that_the_teacher_cannot_do_has_no_retention_in_the_table(run_folder):
    results = write_results(run_folder)
    results["tasks"]["count"] |= {"teacher": 0.0, "retention": None, "retention_interval": None}
    line = next(line for line in printed(results, 100).splitlines() if line.strip().startswith("count"))
    assert "–" in line.split()


def test_the_verdict_names_the_task_that_lost_most(run_folder):
    results = write_results(run_folder)
    weakest = min(results["tasks"], key=lambda name: results["tasks"][name]["retention"])
    assert f"it keeps least of {weakest}" in verdict(results)


def test_markdown_has_a_line_per_task_and_stage_and_the_charts(run_folder):
    results = write_results(run_folder)
    results["tasks"]["a|b"] = results["tasks"].pop("count")
    text = markdown_report(results, {"retention.png": "what is kept"})
    assert "| a\\|b |" in text
    assert all(f"| {stage['name']} |" in text for stage in results["stages"])
    assert "![what is kept](retention.png)" in text
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9}


def test_a_stage_that_leaves_the_sites_where_they_were_is_called_so():
    stage = {"first_sites": {"0": 1.0, "1": 1.0}, "sites": {"0": 0.99, "1": 0.97}}
    assert stage_remark(stage).startswith("hardly moves")
    assert "site 0 (0.990)" in stage_remark(stage)
    assert stage_remark(stage | {"sites": {"0": 0.5, "1": 0.6}}).startswith("moves")
    assert stage_remark(stage | {"sites": {"0": 1.5, "1": 0.6}}).startswith("leaves the sites further")
    assert stage_remark({"first_sites": {}, "sites": {}}) == ""
