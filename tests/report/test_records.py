import json

import pytest

from linearize.errors import RunError
from linearize.report.records import read_run


def test_a_run_folder_is_read_with_its_stages_in_order(run_folder):
    (run_folder / "stages" / "10-late").mkdir()
    run = read_run(run_folder)
    assert [(stage.number, stage.name) for stage in run.stages] == [
        (1, "align-new"), (2, "align-mixer"), (3, "distill"), (10, "late"),
    ]  # fmt: skip
    assert run.name == "mmmamba-hovle"
    assert run.stages[3].done is None


def test_a_line_that_a_kill_cut_short_is_left_out_and_repeated_steps_count_once(run_folder):
    path = run_folder / "stages" / "3-distill" / "metrics.jsonl"
    again = json.dumps({"step": 20, "loss": 123.0})
    path.write_text(path.read_text() + again + "\n" + '{"step": 210, "lo')
    steps = [line["step"] for line in read_run(run_folder).stages[2].metrics]
    assert steps == list(range(10, 201, 10))
    assert read_run(run_folder).stages[2].metrics[1]["loss"] == 123.0


def test_curves_begin_at_the_first_step_even_when_it_was_not_logged(run_folder):
    stage = read_run(run_folder).stages[0]
    assert stage.losses()[0] == (1, stage.done["first_loss"])
    assert stage.site_errors()[0] == (1, {int(site): error for site, error in stage.done["first_sites"].items()})
    assert len(stage.losses()) == len(stage.metrics) + 1


def test_a_report_of_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RunError, match="there is no such run folder"):
        read_run(tmp_path / "nothing")
