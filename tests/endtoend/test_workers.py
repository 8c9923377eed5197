"""A run with worker processes is the run without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_a_run_with_workers_that_goes_on_without_them_gives_the_same_content(
    demo: Any, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = demo.run(monkeypatch, tmp_path, {"run.workers": 2})
    found, wanted = demo.content(run), demo.content(reference)
    assert found.pop("student/config.json") != wanted.pop("student/config.json")  # it holds the recipe
    assert found == wanted
    demo.unfinish(run, stage=3)
    for done in (run / "stages").glob("3-*/checkpoints/step-00000005"):
        (done / "manifest.json").unlink()
    demo.run(monkeypatch, tmp_path, {"run.workers": 0})
    assert demo.content(run) == demo.content(reference)
