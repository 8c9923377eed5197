"""Distilling on running text, through the command line's own way: whole, stopped and resumed, and mixed lengths."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.data.export import export_llava
from linearize.data.text.config import TextConfig
from linearize.data.text.source import TextSource
from linearize.errors import DataError, RecipeError
from linearize.protocols import LeavesOut

pytestmark = pytest.mark.slow

WORDS = ("red", "blue", "green", "circle", "square", "how", "many", "left", "of", "the", "what", "one", "two")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    draw = random.Random(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) for _ in range(60)]
    (folder / "a.txt").write_text("\n\n".join(texts[:30]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[30:]))
    return folder


def on_text(corpus: Path, **more: Any) -> dict[str, Any]:
    data = {"type": "text", "path": str(corpus), "separator": "\n\n", "tokens": 24, "held_out": 0.1, **more}
    return {"data": data, "evaluate.benchmarks": [], "stages.distill.objective": {"type": "logit_kl"}}


def test_a_run_on_text_that_was_stopped_ends_as_one_that_was_not(
    demo: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = demo.run(monkeypatch, tmp_path, on_text(corpus))
    weights, done = demo.weights(whole, 3), demo.weights(whole, 3).parents[1] / "done.json"
    kept = (whole / "student" / "model.safetensors").read_bytes()
    assert json.loads(done.read_text())["tokens"] == 24 * 4 * 5
    (whole / "evaluation").mkdir()
    demo.unfinish(whole, 3)
    shutil.rmtree(weights)
    assert demo.weights(whole, 3).name == "step-00000004"
    demo.run(monkeypatch, tmp_path, on_text(corpus))
    assert (whole / "student" / "model.safetensors").read_bytes() == kept
    assert json.loads(done.read_text())["tokens"] == 24 * 4 * 5


def test_a_streamed_run_takes_the_rows_of_an_unshuffled_one(
    demo: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()  # type: ignore[func-returns-value]
    streamed, _ = demo.run(monkeypatch, first, on_text(corpus, streaming=True))
    held, _ = demo.run(monkeypatch, second, on_text(corpus, shuffle=False))
    path = "student/model.safetensors"
    assert (streamed / path).read_bytes() == (held / path).read_bytes()


def test_plan_tells_documents_tokens_and_epochs(
    demo: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan", *demo.arguments(on_text(corpus))[1:]], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert " documents, " in result.output
    assert " rows of 24; the stages take 52, " in result.output
    assert " epochs" in result.output


def test_text_for_a_teacher_that_reads_none_is_refused(
    demo: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linearize.plan.trials.ReadsText", LeavesOut)  # which no adapter is
    with pytest.raises(RecipeError, match=r"data: it holds running text, which this teacher's adapter does not"):
        demo.run(monkeypatch, tmp_path, on_text(corpus))


def test_running_text_is_not_exported(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only conversations can be exported"):
        export_llava(TextSource(TextConfig(path=str(corpus))), 1, tmp_path / "to")
