"""report/results.json: all numbers of a run in one file, for programs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from linearize.files.json_file import write_json
from linearize.report.records import RunRecord, read_run
from linearize.report.sections import BRANCHES, evaluators_of

EVALUATION_KEYS = (
    "tasks", "average_retention", "average_retention_interval", "kl", "top1_agreement", "answer_tokens", "dials",
)  # fmt: skip


def build_results(run: RunRecord) -> dict[str, Any]:
    """The content of results.json; without an evaluation the tasks and dials are empty and their averages None."""
    evaluation = run.evaluation or {"tasks": {}, "dials": {}}
    evaluators = evaluators_of(evaluation)
    return {
        "run": run.name,
        **{key: evaluation.get(key) for key in EVALUATION_KEYS},
        "evaluators": evaluators,
        BRANCHES: evaluators[BRANCHES]["results"] if BRANCHES in evaluators else None,
        "stages": [dict(stage.done) for stage in run.stages if stage.done is not None],
        "bad_records": dict(
            Counter(record["fault"] for record in run.bad_records if record.get("left_out", True)).most_common()
        ),
        "cut_records": sum(not record.get("left_out", True) for record in run.bad_records),
        "environment": dict(run.environment),
        **({"changes": [dict(change) for change in run.changes]} if run.changes else {}),
    }


def write_results(run_folder: Path) -> dict[str, Any]:
    """Writes report/results.json from the run folder and returns its content.

    Raises:
        RunError: there is no such folder.
    """
    results = build_results(read_run(run_folder))
    write_json(run_folder / "report" / "results.json", results)
    return results
