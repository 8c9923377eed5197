"""What a command is given: runs, students, and what looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import bare_run, bare_student

from linearize.errors import CheckpointError, RecipeError, RunError, UnknownNameError
from linearize.inference.targets import find_student
from linearize.plugin.discovery import Plugins


def test_a_run_stands_for_the_student_in_it(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "runs" / "x", finished=True)
    assert find_student(run).folder == run / "student"
    assert find_student(run) == find_student(run / "student")


def test_a_run_that_has_not_finished_is_told_how_it_goes_on(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "x", finished=False)
    with pytest.raises(RunError, match=r"has not finished.*`linearize run .*x/recipe\.toml` goes on"):
        find_student(run)


def test_a_comparison_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunError, match="comparison of several runs; give one of them"):
        find_student(tmp_path)


def test_a_name_is_looked_for_among_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare_run(tmp_path / "runs" / "demo", finished=True)
    with pytest.raises(CheckpointError, match=r"no folder 'demo'\. Did you mean 'runs/demo'\?"):
        find_student("demo")
    with pytest.raises(CheckpointError, match=r"no folder 'runs/demmo'\. Did you mean 'runs/demo'\?"):
        find_student("runs/demmo")


def test_a_student_names_the_teacher_that_it_was_made_of(tmp_path: Path) -> None:
    adapter = find_student(bare_student(tmp_path / "student")).teacher(Plugins.discover()).build()
    assert adapter.sites()[0].tower == "embedding"


@pytest.mark.parametrize(
    ("teacher", "error", "text"),
    [
        ({}, CheckpointError, "does not say which teacher"),
        ({"type": "hovel"}, UnknownNameError, "Did you mean 'hovle'"),
        (
            {"type": "hovle", "chekpoint": "x"},
            RecipeError,
            r"the recipe in .*config\.json has problems:\n  - chekpoint",
        ),
    ],
)
def test_a_teacher_that_cannot_be_made_is_told(
    tmp_path: Path, teacher: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        find_student(bare_student(tmp_path / "student", teacher)).teacher(Plugins.discover())
