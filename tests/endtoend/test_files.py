"""Drawn conversations written to files, and a run from those files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from linearize_hovle.adapter import HovleAdapter
from safetensors.torch import load_file
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.errors import DataError

pytestmark = pytest.mark.slow

NO_QUESTIONS: dict[str, Any] = {"evaluate.benchmarks": []}


@pytest.fixture(scope="module")
def exported(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many of the demo's conversations as its tiny run takes, written by the command line."""
    folder = tmp_path_factory.mktemp("export") / "files"
    count = sum(4 * steps for steps in demo.stages.values())
    arguments = ["data", "export", str(demo.recipe), "--count", str(count), "--to", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


def _from(records: Path, **more: Any) -> dict[str, Any]:
    return {"data": {"type": "llava_json", "path": str(records), "shuffle": False, **more}, **NO_QUESTIONS}


def test_a_run_from_exported_files_gives_the_weights_of_the_run_that_draws(
    demo: Any, reference: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = demo.run(monkeypatch, tmp_path, _from(exported / "records.jsonl"))
    for stage in range(1, len(demo.stages) + 1):
        drawn, read = (load_file(demo.weights(folder, stage) / "weights.safetensors") for folder in (reference, run))
        assert drawn.keys() == read.keys()
        assert [name for name, tensor in drawn.items() if not tensor.equal(read[name])] == []
    assert (run / "student" / "model.safetensors").read_bytes() == (
        reference / "student" / "model.safetensors"
    ).read_bytes()


@pytest.fixture
def spoilt(exported: Path, tmp_path: Path) -> Path:
    """The exported records with a missing image, a malformed line and a mark too many on lines 3, 5 and 7."""
    lines = (exported / "records.jsonl").read_text(encoding="utf-8").splitlines()
    missing, marked = json.loads(lines[2]), json.loads(lines[6])
    missing["image"] = "images/gone.png"
    marked["conversations"][0]["value"] = "<image>\n<image>\n<image>\nhow many ?"
    lines[2], lines[4], lines[6] = json.dumps(missing), lines[4][:40], json.dumps(marked)
    path = tmp_path / "spoilt.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_bad_records_are_named_counted_and_skipped_up_to_the_limit(
    demo: Any, exported: Path, spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = demo.run(monkeypatch, tmp_path, _from(spoilt, images=str(exported), max_bad=3))
    assert (run / "done.json").exists()
    [warning] = [text for text in told.warnings if "skipped" in text]
    for said in ("3 records skipped (", "1 image not found", "1 malformed JSON", "line 5: malf", "line 7: ",
                 "line 3: image not found: images/gone.png"):  # fmt: skip
        assert said in warning, warning
    lines = [json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines()]
    assert [(line["source"], line["index"]) for line in lines] == [(str(spoilt), number) for number in (3, 5, 7)]
    assert lines[0]["reason"] == "image not found: images/gone.png"
    results = json.loads((run / "report" / "results.json").read_text())
    assert results["bad_records"] == {
        "image not found": 1, "malformed JSON": 1, "wrong number of <image> marks": 1,
    }  # fmt: skip
    for page in ("index.html", "report.md"):
        assert "3 records of the training data left out: 1 image not found" in (run / "report" / page).read_text()

    (run / "evaluation").mkdir()
    demo.unfinish(run, 3)
    _, again = demo.run(monkeypatch, tmp_path, _from(spoilt, images=str(exported), max_bad=3))
    assert [text for text in again.warnings if "skipped" in text] == []
    assert [json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines()] == lines


@pytest.mark.parametrize("line", [2, 30])
def test_a_record_that_only_a_batch_shows_to_be_bad_is_skipped_whenever_it_comes(
    demo: Any, exported: Path, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step, on which the run is tried out, and in a later stage."""
    batch, lines = HovleAdapter.batch, (exported / "records.jsonl").read_text(encoding="utf-8").splitlines()
    unfit = json.loads(lines[line - 1])["id"]

    def picky(self: HovleAdapter, conversations: Any, **options: Any) -> Any:
        if any(one.id == unfit for one in conversations):
            raise DataError("its pixels are no picture")
        return batch(self, conversations, **options)

    monkeypatch.setattr(HovleAdapter, "batch", picky)
    run, told = demo.run(monkeypatch, tmp_path, _from(exported / "records.jsonl", max_bad=1))
    [warning] = [text for text in told.warnings if "skipped" in text]
    assert f"line {line}: not for this teacher: its pixels are no picture" in warning
    [told_once] = (run / "bad_records.jsonl").read_text().splitlines()
    assert json.loads(told_once)["index"] == line


def test_a_record_refused_midway_leaves_the_same_weights_with_workers_and_after_a_kill(
    demo: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the refusal, and after it, where the run that goes on has not met it."""
    batch, lines = HovleAdapter.batch, (exported / "records.jsonl").read_text(encoding="utf-8").splitlines()
    unfit = json.loads(lines[29])["id"]

    def picky(self: HovleAdapter, conversations: Any, **options: Any) -> Any:
        if any(one.id == unfit for one in conversations):
            raise DataError("its pixels are no picture")
        return batch(self, conversations, **options)

    monkeypatch.setattr(HovleAdapter, "batch", picky)
    recipe = _from(exported / "records.jsonl", max_bad=1)
    for name in ("whole", "workers"):
        (tmp_path / name).mkdir()
    whole, _ = demo.run(monkeypatch, tmp_path / "whole", recipe)
    wanted = [demo.weights(whole, stage) / "weights.safetensors" for stage in range(1, len(demo.stages) + 1)]
    run, _ = demo.run(monkeypatch, tmp_path / "workers", recipe | {"run.workers": 2})
    account = (whole / "bad_records.jsonl").read_bytes()
    for stage in (None, 3, 2):
        if stage is not None:
            (run / "bad_records.jsonl").unlink(missing_ok=True)
            (run / "evaluation").mkdir(exist_ok=True)
            demo.unfinish(run, stage=stage)
            for done in (run / "stages").glob(f"{stage}-*/checkpoints/step-*"):
                (done / "manifest.json").unlink()
            demo.run(monkeypatch, tmp_path / "workers", recipe | {"run.workers": 2 if stage == 3 else 0})
        for number, path in enumerate(wanted, 1):
            assert (demo.weights(run, number) / "weights.safetensors").read_bytes() == path.read_bytes()
        if stage is None:
            assert (run / "bad_records.jsonl").read_bytes() == account


def test_one_bad_record_more_than_the_limit_stops_the_run_before_it_begins(
    demo: Any, exported: Path, spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, demo.arguments(_from(spoilt, images=str(exported), max_bad=2)))
    assert result.exit_code == 1
    assert "data: " in result.stderr
    assert "3 of 52 records are bad" in result.stderr
    assert "at most 2 may be (data.max_bad = 2)" in result.stderr
    assert not (tmp_path / "runs").exists()
