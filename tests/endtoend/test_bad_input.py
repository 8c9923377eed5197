"""What a user gets wrong, through the real command line: everything at once, by TOML path, and no traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import environment
from safetensors import SafetensorError
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.distill.checkpoint import read_latest

pytestmark = pytest.mark.slow

# Everything that can be wrong in a recipe without hiding something else that is.
WRONG = """
extends = "{recipe}"
[run]
seeed = 3
checkpoint_every = "often"
[student]
layout = {{ type = "keep", sites = [2, 31] }}
[student.mixer]
type = "mamba2"
chunk_sise = 64
[data]
type = "glanze"
[[stages]]
name = "align-new"
train = ["new"]
freeze = ["new"]
[[stages]]
name = "align-mixer"
train = ["gates"]
[[stages]]
name = "distill"
objective = {{ temperature = 0 }}
[evaluate]
benchmarks = [{{ type = "glance", questions = 1.5 }}]
"""
EXPECTED = (
    r"run\.seeed: unknown key; got 3\. Did you mean 'seed'\?",
    r"run\.checkpoint_every: Input should be a valid integer.*; got 'often'",
    r"student\.layout: .*31.*8 sites",
    r"student\.mixer\.chunk_sise: unknown key; got 64\. Did you mean 'chunk_size'\?",
    r"data\.type: unknown data 'glanze'\. Did you mean 'glance'\?",
    r"stages\.align-mixer\.train: no parameter of the mixer has the role 'gates'\. Did you mean 'gate'\?",
    r"stages\.distill\.objective\.temperature: Input should be greater than 0; got 0",
    r"evaluate\.benchmarks\.0\.questions: Input should be a valid integer.*; got 1\.5",
)
IN_STAGES = (
    r"stages\.align-new\.train: trains nothing: train = \['new'\] without freeze = \['new'\]",
    r"stages\.align-mixer\.train: no parameter of the mixer has the role 'gates'\. .* There are: .*gate.*new",
)


def _shell(demo: Any, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "linearize", *arguments],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def _refused(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    assert "Traceback" not in result.output
    return str(result.stderr)


def test_all_problems_of_a_recipe_are_told_at_once(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(WRONG.format(recipe=demo.recipe))
    done = _shell(demo, tmp_path, "run", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    problems = done.stderr.splitlines()
    assert problems[0] == f"{path} has problems:"
    for pattern in EXPECTED:
        assert [line for line in problems if re.fullmatch(rf"  - {pattern}.*", line)], (pattern, done.stderr)
    assert "Traceback" not in done.stderr
    assert sorted(child.name for child in tmp_path.iterdir()) == ["wrong.toml"]
    monkeypatch.chdir(tmp_path)
    for command in ("check", "plan"):
        assert _refused([command, str(path)]) == done.stderr


def test_stages_that_train_nothing_are_told_together(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = (
        'stages.align-new.freeze=["new"]',
        'stages.align-mixer.train=["gates"]',
        'student.layout={type="keep",sites=[8]}',
    )
    text = _refused(["check", str(demo.recipe), *(part for text in overrides for part in ("--set", text))])
    for pattern in (*IN_STAGES, r"student\.layout: .*8.*0\.\.7"):
        assert re.search(rf"^  - {pattern}", text, flags=re.MULTILINE), (pattern, text)


def test_a_missing_recipe_is_named(demo: Any, tmp_path: Path) -> None:
    done = _shell(demo, tmp_path, "run", "examples/mmmamba_hovel.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "mmmamba_hovel.toml has problems:\n  - there is no such file" in done.stderr


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A copy of the teacher that one may damage."""
    from linearize_hovle.adapter import EMBEDDED

    return Path(shutil.copytree(EMBEDDED, tmp_path / "teacher"))


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_teacher_whose_config_is_cut_short_is_refused_among_the_other_problems(
    command: str, demo: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(teacher / "config.json", 100)
    monkeypatch.chdir(tmp_path)
    text = _refused([command, *demo.arguments({"teacher.checkpoint": str(teacher)})[1:], "--set", "run.dtype=float8"])
    assert re.search(r"^  - teacher: .*config\.json", text, flags=re.MULTILINE), text
    assert re.search(r"^  - run\.dtype: .*'float8'", text, flags=re.MULTILINE), text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["cut short", "gone", "no weights at all"])
def test_a_teacher_whose_weights_are_damaged_is_refused_by_name(
    damage: str, demo: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = teacher / "model.safetensors"
    match damage:
        case "cut short":
            os.truncate(weights, weights.stat().st_size // 2)
        case "gone":
            weights.unlink()
        case "no weights at all":
            weights.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    text = _refused(demo.arguments({"teacher.checkpoint": str(teacher)}))
    assert "safetensors" in text
    assert str(teacher) in text


def test_a_teacher_that_changed_while_a_run_was_stopped_is_refused(
    demo: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    options = {"teacher.checkpoint": str(teacher), "evaluate.benchmarks": []}
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        _fill(patch, "2-align-mixer/checkpoints")
        _refused(demo.arguments(options))
    weights = load_file(teacher / "model.safetensors")
    last = sorted(weights)[-1]
    changed = weights | {last: weights[last] * 1.01}
    save_file(changed, teacher / "model.safetensors", metadata={"format": "pt"})
    text = _refused(demo.arguments(options))
    assert "runs/tiny was begun with another teacher" in text
    assert "--fresh" in text
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    result = CliRunner().invoke(app, demo.arguments(options))
    assert result.exit_code == 0, result.output


def test_a_teacher_folder_that_is_not_there_is_told_before_anything_is_run(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = _refused(demo.arguments({"teacher.checkpoint": "./nowhere"}))
    assert re.search(r"^  - teacher\.checkpoint: there is no folder './nowhere'\. Give", text, re.M), text
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_full_again_and_again_costs_no_bit(
    demo: Any, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full while weights are written, while they are flushed, in the evaluation, in the student, in the report."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tiny"

    def full_at(part: str, function: Callable[[], Any]) -> str:
        with monkeypatch.context() as patch:
            _fill(patch, part)
            return str(function())

    def refused() -> str:
        return _refused(demo.arguments())

    text = full_at(".step-00000004.partial/weights.safetensors", refused)
    assert "cannot write checkpoint step-00000004" in text
    assert "No space left on device" in text
    assert "Earlier checkpoints are whole" in text
    assert "type the same command again" in text
    checkpoints = run / "stages" / "1-align-new" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000002"]
    found, damaged = read_latest(checkpoints)
    assert found is not None
    assert (found.step, damaged) == (2, [])

    assert "cannot write checkpoint step-00000002" in full_at("2-align-mixer/checkpoints/.step-00000002", refused)
    for part in ("3-distill/metrics.jsonl", "chart.student.json", "model.safetensors", "index.html", "done.json"):
        text = full_at(part, refused)
        assert "No space left on device" in text, part
        assert "type the same command again" in text, part
    assert json.loads((run / "stages" / "3-distill" / "done.json").read_text())["steps"] == demo.stages["distill"]

    result = CliRunner().invoke(app, demo.arguments())
    assert result.exit_code == 0, result.output
    assert demo.content(run) == demo.content(reference)
    left = [path for path in run.rglob("*") if "partial" in path.name or path.name.endswith(".part")]
    assert left == []


def _fill(patch: pytest.MonkeyPatch, part: str) -> None:
    """Lets everything that writes to a path which holds ``part`` find no room: open, fsync, safetensors."""
    import builtins
    import io

    import transformers.modeling_utils as modeling

    from linearize.distill import checkpoint

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    open_file, fsync, save = io.open, os.fsync, checkpoint.save_file

    def open_or_fail(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if part in str(file) and set(mode) & set("wax+"):
            raise full
        return open_file(file, mode, *args, **kwargs)

    def fsync_or_fail(descriptor: int) -> None:
        if part in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise full
        fsync(descriptor)

    def save_or_fail(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if part in str(path):
            Path(path).write_bytes(b"the first part of what was to be written")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, *args, **kwargs)

    patch.setattr(io, "open", open_or_fail)
    patch.setattr(builtins, "open", open_or_fail)
    patch.setattr(os, "fsync", fsync_or_fail)
    patch.setattr(checkpoint, "save_file", save_or_fail)
    patch.setattr(modeling, "safe_save_file", save_or_fail)
