"""linearize from Python, up to where a run begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import linearize
from linearize import api
from linearize.errors import CheckpointError, RecipeError, RunError, UnknownNameError
from linearize.files.run_folder import RunFolder


class Stopped(Exception):
    """Raised where a run would begin."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Makes a run in an empty folder stop before its first step; holds what the pipeline was given."""
    from linearize.pipeline import run as pipeline

    given: list[Any] = []

    def stop(*arguments: Any) -> None:
        given.extend(arguments)
        raise Stopped

    monkeypatch.setattr(pipeline, "run_pipeline", stop)
    monkeypatch.setattr("linearize.plan.plan.CheckedRecipe.with_tokens", lambda checked: checked)
    monkeypatch.chdir(tmp_path)
    return given


def test_the_package_offers_the_functions_of_the_api() -> None:
    for name in ("compare", "load_student", "load_teacher", "run"):
        assert getattr(linearize, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="module 'linearize' has no attribute 'lode_teacher'"):
        getattr(linearize, "lode_teacher")  # noqa: B009  an attribute that mypy would not let pass


def test_overrides_may_be_texts_or_a_mapping(tables: dict[str, Any]) -> None:
    mapping = {"stages.distill.steps": 9, "run.name": "other", "student.layout": {"type": "keep", "sites": [1]}}
    texts = ["stages.distill.steps=9", "run.name=other", 'student.layout={ type = "keep", sites = [1] }']
    recipe = api.check(tables, mapping).recipe
    assert recipe == api.check(tables, texts).recipe
    assert recipe.recipe.stages[1].steps == 9


def test_one_text_for_overrides_is_refused(tables: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"overrides are a list or a mapping; got the text 'run.seed=1'"):
        api.check(tables, "run.seed=1")


def test_checking_leaves_the_callers_tables_alone(tables: dict[str, Any]) -> None:
    before = json.dumps(tables)
    api.check(tables, {"run.seed": 5})
    assert json.dumps(tables) == before


def test_a_run_goes_to_runs_below_the_current_directory(started: list[Any], tables: dict[str, Any]) -> None:
    with pytest.raises(Stopped):
        api.run(tables, ["run.seed=4"])
    recipe, _, _, plan, folder, _ = started
    assert recipe.recipe.run.seed == 4
    assert len(plan.stages) == 2
    assert folder.path == Path("runs/tiny")


def test_a_fresh_run_keeps_the_old_folder_beside_and_says_where(
    started: list[Any], tables: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "runs" / "tiny"
    old.mkdir(parents=True)
    (old / "recipe.toml").touch()
    (old / "content").write_text("precious")
    with caplog.at_level("INFO", logger="linearize"), pytest.raises(Stopped):
        api.run(tables, fresh=True)
    assert not old.exists()
    assert (tmp_path / "runs" / "tiny.old-1" / "content").read_text() == "precious"
    assert "the old run is kept in runs/tiny.old-1" in caplog.text


def test_a_fresh_run_does_not_take_the_folder_of_a_process_at_work(
    started: list[Any], tables: dict[str, Any], tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "runs" / "tiny").locked(), pytest.raises(RunError, match="in use by another"):
        api.run(tables, fresh=True)
    assert started == []


def test_the_display_is_closed_whatever_happens(started: list[Any], tables: dict[str, Any]) -> None:
    closed = []

    class Display(api.SilentDisplay):
        def close(self) -> None:
            closed.append(True)

    with pytest.raises(Stopped):
        api.run(tables, display=Display())
    assert closed == [True]


def test_only_the_first_of_several_processes_speaks(
    started: list[Any], tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Display(api.SilentDisplay):
        pass

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Stopped):
        api.run(tables, display=Display())
    assert type(started[-1]) is api.SilentDisplay


def test_an_unknown_teacher_is_told_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'hovel'. Did you mean 'hovle'\?"):
        linearize.load_teacher("hovel")


def test_an_unknown_option_of_a_teacher_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"load_teacher\('hovle'\) has problems:\n  - chekpoint: unknown key"):
        linearize.load_teacher("hovle", chekpoint="embedded")


def test_a_folder_without_a_student_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config.json, so it is no student, and no recipe.toml"):
        linearize.load_student(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config.json is no readable model configuration"):
        linearize.load_student(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"model_type 'llama'"):
        linearize.load_student(tmp_path)
