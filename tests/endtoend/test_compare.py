"""A comparison on the embedded model: killed and typed again, with a cell that fails, from Python and as a command."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

import linearize
from linearize.cli.app import app
from linearize.comparison.findings import ComparisonResult
from linearize.errors import RunError
from linearize.files.json_file import read_sealed, write_sealed
from linearize.files.run_folder import RunFolder

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "run": {"name": "tiny", "device": "cpu", "num_threads": 1, "checkpoint_every": 1, "log_every": 1},
    "stages": [
        {"name": name, "steps": steps, "batch_size": 2}
        for name, steps in (("align-new", 1), ("align-mixer", 1), ("distill", 3))
    ],
    "evaluate": {
        "benchmarks": [{"type": "glance", "tasks": ["attribute", "recall"], "questions": 3}],
        "max_new_tokens": 4,
        "num_examples": 0,
        "dial_questions": 0,
    },
}
CELLS: list[dict[str, Any]] = [
    {"name": "pure"},
    {"name": "hybrid", "set": {"student": {"layout": {"type": "every", "keep": 4}, "mixer": {"conv_width": 4}}}},
    {"name": "broken", "set": {"stages": {"distill": {"lr": 1e30, "clip": 1e30}}}},
]
CLOCK = ("training_seconds", "training_tokens_per_second", "training_runs_at_once", "decode_ms_per_token")
"""Columns of clocks and what they depend on."""


def write_recipe(folder: Path, demo: Any, cells: list[dict[str, Any]], **compare: Any) -> Path:
    path = folder / "mixers.toml"
    compare = {"name": "mixers", "cells": cells, "decode_tokens": 2, "decode_rounds": 2, **compare}
    path.write_text(tomli_w.dumps({"extends": str(demo.recipe), **TINY, "compare": compare}), encoding="utf-8")
    return path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The CSV without what a clock decides, by cell."""
    with (folder / "report" / "compare.csv").open(encoding="utf-8") as file:
        found = {row["cell"]: row for row in csv.DictReader(file)}
    return {cell: {key: value for key, value in row.items() if key not in CLOCK} for cell, row in found.items()}


@pytest.fixture(scope="module")
def whole(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComparisonResult]:
    """A comparison that nobody stopped, from Python, two runs at a time: its working directory and its result."""
    cwd = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        return cwd, linearize.compare(write_recipe(cwd, demo, CELLS), jobs=2)


def test_a_failing_cell_is_told_and_leaves_the_others_alone(whole: tuple[Path, ComparisonResult]) -> None:
    cwd, result = whole
    assert [cell.name for cell in result.cells] == ["pure", "hybrid"]
    [failure] = result.failures
    assert (failure.cell, failure.seed) == ("broken", 0)
    assert failure.text.startswith("training diverged in stage 'distill': ")
    assert result.folder == Path("runs/mixers")
    page = (cwd / result.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "training diverged in stage" in page


def test_cells_train_on_the_same_samples_and_answer_the_same_questions(whole: tuple[Path, ComparisonResult]) -> None:
    cwd, result = whole
    pure, hybrid = result.cells
    assert pure.tokens == hybrid.tokens
    answers = [cwd / result.folder / "cells" / cell.name / "seed-0" / "evaluation" / "answers" for cell in result.cells]
    answers.append(cwd / result.folder / "teacher" / "answers")
    names = [path.name for path in answers[0].glob("*.teacher.json")]
    assert len(names) == 2
    for name in names:
        one, other, shared = (json.loads((folder / name).read_text()) for folder in answers)
        assert one["answers"] == other["answers"] == shared["answers"]
        assert one["questions"] == other["questions"] == shared["questions"]
    assert (pure.num_linear, hybrid.num_linear, pure.num_sites) == (8, 6, 8)


def test_teacher_and_students_are_timed_alike(whole: tuple[Path, ComparisonResult]) -> None:
    _, result = whole
    assert result.teacher is not None
    assert result.how_decoded["new_tokens"] == 2
    assert result.how_decoded["prompts"] == 2
    for found in (result.teacher, *result.cells):
        assert len(found.decode_rounds_ms) == 2
        assert found.decode_ms == sum(found.decode_rounds_ms) / 2  # the median of two


def test_a_student_that_cannot_be_timed_leaves_the_others_alone(
    whole: tuple[Path, ComparisonResult], tmp_path: Path
) -> None:
    from linearize.comparison.decoding import measure_decoding

    cwd, result = whole
    tables = json.loads((cwd / result.folder / "comparison.json").read_text(encoding="utf-8"))["cells"]["pure"]
    student = cwd / result.folder / "cells" / "pure" / "seed-0" / "student"
    measured = measure_decoding(tables, {"lost": tmp_path, "pure": student}, new_tokens=1, rounds=1)
    assert set(measured["students"]) == {"pure"}
    assert measured["failed"]["lost"].startswith("CheckpointError: expected a student in ")
    assert len(measured["teacher"]["ms_by_round"]) == 1


def test_a_finished_comparison_is_shown_again_without_running_anything(
    whole: tuple[Path, ComparisonResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd, result = whole
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(subprocess, "Popen", _refuse)
    before = rows(result.folder)
    shown = CliRunner().invoke(app, ["compare", "mixers.toml", "--set", f"compare.cells={_inline(CELLS[:2])}"])
    assert shown.exit_code == 0, shown.output
    assert "[1/2] pure, seed 0: was done before" in shown.stdout
    assert "decode ms/token" in shown.stdout
    assert "report: runs/mixers/report/index.html" in shown.stdout
    assert rows(result.folder) == before


def test_another_comparison_in_the_folder_is_refused_and_fresh_keeps_the_old_one(
    whole: tuple[Path, ComparisonResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd, result = whole
    shutil.copytree(cwd / "runs", tmp_path / "runs")
    shutil.copy(cwd / "mixers.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RunError, match=r"runs/mixers holds another comparison(.|\n)*evaluate.batch_size: was 64, now 2"
    ):
        linearize.compare("mixers.toml", {"evaluate.batch_size": 2})
    monkeypatch.setattr(subprocess, "Popen", _refuse)
    with pytest.raises(AssertionError, match="a process was started"):
        linearize.compare("mixers.toml", {"evaluate.batch_size": 2}, fresh=True)
    assert rows(tmp_path / "runs" / "mixers.old-1") == rows(cwd / result.folder)


def test_killed_inside_a_cell_and_typed_again_the_table_is_the_same(
    whole: tuple[Path, ComparisonResult], demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd, result = whole
    write_recipe(tmp_path, demo, CELLS[:2], decode_tokens=0)
    folder = tmp_path / "runs" / "mixers"
    # One cell is finished, as it would be, and the next one is not there yet.
    shutil.copytree(cwd / result.folder, folder)
    for gone in (folder / "report", folder / "cells" / "hybrid", folder / "cells" / "broken"):
        shutil.rmtree(gone)
    finished = (folder / "cells" / "pure" / "seed-0" / "done.json").stat().st_mtime_ns
    # The one that is left does not ask the teacher what the first has asked, or it would hear something else.
    heard = next((folder / "teacher" / "answers").glob("*recall*"))
    told = read_sealed(heard)
    assert told is not None
    told["answers"][0]["answer"] = "told before"
    write_sealed(heard, told)
    stage = folder / "cells" / "hybrid" / "seed-0" / "stages" / "3-distill"
    process = demo.start(tmp_path, ["compare", "mixers.toml"])
    try:
        _wait_for((stage / "checkpoints" / "step-00000001").exists, process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    # The run's process goes with the one that was killed, or it would still hold the run.
    _wait_for(lambda: _is_free(stage.parents[1]))
    assert not (stage.parents[1] / "done.json").exists(), "the kill came too late to be inside the cell"
    monkeypatch.chdir(tmp_path)
    again = linearize.compare("mixers.toml")
    assert not again.failures
    assert (folder / "cells" / "pure" / "seed-0" / "done.json").stat().st_mtime_ns == finished
    assert rows(folder) == rows(cwd / result.folder)
    found = json.loads((stage.parents[1] / "evaluation" / "answers" / heard.name).read_text())
    assert found["answers"] == told["answers"]


def _wait_for(there: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 240
    while not there():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def _is_free(run: Path) -> bool:
    try:
        with RunFolder(run).locked():
            return True
    except RunError:
        return False


def _inline(cells: list[dict[str, Any]]) -> str:
    from linearize.recipe.toml import to_inline

    return to_inline(cells)


def _refuse(*_: Any, **__: Any) -> Iterator[None]:
    raise AssertionError("a process was started")
