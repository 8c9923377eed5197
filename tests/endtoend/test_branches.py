"""A student with a window and a linear branch, through the demo recipe: trained, looked at, told, killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def closed(demo: Any) -> dict[str, Any]:
    """A recipe whose stages leave the gate of the linear branch at 0."""
    return {
        "student.mixer.type": "swa_linear",
        "student.mixer.window": 8,
        "student.mixer.window_dropout": 0.5,
        "student.mixer.linear.type": "simple_gla",
        "evaluate.branch_questions": 1,
        "evaluate.dial_questions": 0,
        **{f"stages.{name}.freeze": ["mix"] for name in demo.stages},
    }


@pytest.fixture(scope="module")
def finished(demo: Any, closed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        run: tuple[Path, Any] = demo.run(monkeypatch, tmp_path_factory.mktemp("branches"), closed)
    return run


def test_a_branch_that_no_stage_let_in_is_told_as_ignored(finished: tuple[Path, Any]) -> None:
    run, told = finished
    branches = json.loads((run / "report" / "results.json").read_text())["branches"]
    assert branches["each"]["linear"]["share"] == 0
    assert branches["each"]["linear"]["without"] == branches["whole"]
    assert len(branches["each"]["window"]["sites"]) == 8
    assert "the student ignores its linear branch: it adds 0.0 % of what its sites put out" in told.warnings
    assert "What each branch does" in (run / "report" / "index.html").read_text()


def test_a_window_dropped_at_random_is_dropped_alike_after_a_kill(
    demo: Any, closed: dict[str, Any], finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copied = tmp_path / "runs" / finished[0].name
    shutil.copytree(finished[0], copied)
    demo.unfinish(copied, 2)
    newest = demo.weights(copied, 2)
    assert int(newest.name.removeprefix("step-")) == demo.stages["align-mixer"]
    shutil.rmtree(newest)
    again, _ = demo.run(monkeypatch, tmp_path, closed)
    assert demo.content(again) == demo.content(finished[0])
