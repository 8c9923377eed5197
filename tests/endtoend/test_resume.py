"""Killed at any moment, and typed again, a run ends with the bits of a run that was never killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkout import environment
from safetensors.torch import load_file
from typer.testing import CliRunner

from linearize.cli.app import app

pytestmark = pytest.mark.slow

# In the order in which a run gets there: seeding; a step, a checkpoint half written and one not yet in its place, in
# each stage; answers half written; the student and the report not yet in their places.
TARGETS: tuple[dict[str, Any], ...] = (
    {"path": "seeding.json", "events": 3},
    {"path": "1-align-new/metrics.jsonl", "events": 4},
    {"path": "1-align-new/checkpoints/step-00000004", "events": 1},
    {"path": "2-align-mixer/checkpoints/.step-00000002.partial/manifest.json", "events": 1},
    {"path": "2-align-mixer/done.json", "events": 1},
    {"path": "3-distill/metrics.jsonl", "events": 4},
    {"path": "3-distill/checkpoints/.step-00000005.partial/progress.json", "events": 1},
    {"path": "chart.student.json", "events": 2},
    {"path": "modeling_linearize.py", "events": 1},
    {"path": "runs/tiny/done.json", "events": 1},
)
EVENTS = 370
"""About as many things are done to files in an unbroken run."""
RANDOM_KILLS = 10


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(demo: Any, reference: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("LINEARIZE_KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"moments drawn with LINEARIZE_KILL_SEED={seed}")
    drawn = random.Random(seed)
    # By the clock and by the count of what is done to files: in computation and between two file operations. An attempt
    # gets through about a fifth of the run, so that the kills lie all over it.
    moments = [
        {"seconds": drawn.uniform(0.1, 1.2)} if number % 2 else {"events": drawn.randint(1, EVENTS // 5)}
        for number in range(RANDOM_KILLS)
    ]
    attempts = _killed_run(demo, tmp_path, moments)
    story = "\n".join(f"{a['moment']} -> {a['status']}: {a['there']}" for a in attempts)
    print(story)
    statuses = [a["status"] for a in attempts]
    assert statuses[-1] == 0, (seed, story, (tmp_path / "output.txt").read_text()[-3000:])
    assert statuses[:-1].count(-signal.SIGKILL) == len(statuses) - 1 >= 3, (seed, story)
    _assert_same(demo, tmp_path / "runs" / "tiny", reference, seed)


def test_killed_at_every_step_of_the_pipeline_a_run_ends_with_the_same_bits(
    demo: Any, reference: Path, tmp_path: Path
) -> None:
    attempts = _killed_run(demo, tmp_path, TARGETS)
    assert [a["status"] for a in attempts] == [-signal.SIGKILL] * len(TARGETS) + [0], attempts
    _assert_same(demo, tmp_path / "runs" / "tiny", reference)


def test_a_process_killed_inside_a_stage_goes_on_in_the_middle_of_it(
    demo: Any, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    stage = run / "stages" / "3-distill"
    process = demo.start(tmp_path, demo.arguments())
    try:
        _wait_for((stage / "checkpoints" / "step-00000002").exists, process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (stage / "done.json").exists(), "the kill came too late to be inside the stage"
    process = demo.start(tmp_path, demo.arguments())
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "stage 2/3 align-mixer  was done before" in output
    assert "step 1/5" not in output
    _assert_same(demo, run, reference)


@pytest.mark.parametrize("damage", ["truncated weights", "a flipped bit", "no manifest", "an empty folder"])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(
    damage: str, demo: Any, reference: Path, copy_of_reference: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_reference()
    demo.unfinish(run, 3)
    newest = demo.weights(run, 3)
    _damage(newest, damage)
    _, told = demo.run(monkeypatch, run.parents[1])
    [warning] = told.warnings
    assert f"{newest.name} is damaged" in warning
    assert "; step 4 is used instead" in warning
    _assert_same(demo, run, reference)


def test_a_stage_without_a_whole_checkpoint_starts_over_from_the_stage_before(
    demo: Any, reference: Path, copy_of_reference: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_reference()
    demo.unfinish(run, 2)
    for checkpoint in (run / "stages" / "2-align-mixer" / "checkpoints").iterdir():
        _damage(checkpoint, "truncated weights")
    _, told = demo.run(monkeypatch, run.parents[1])
    assert len(told.warnings) == 2
    assert all(warning.endswith("no other is whole, so the stage starts over") for warning in told.warnings)
    _assert_same(demo, run, reference)


def test_a_damaged_result_of_a_finished_stage_is_made_again(
    demo: Any, reference: Path, copy_of_reference: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_reference()
    demo.unfinish(run, 3)
    _damage(demo.weights(run, 2), "truncated weights")
    _, told = demo.run(monkeypatch, run.parents[1])
    [warning] = told.warnings
    assert "; step 2 is used instead" in warning
    _assert_same(demo, run, reference)


def test_two_checkpoints_of_each_stage_are_kept(reference: Path, demo: Any) -> None:
    kept = {
        stage.name.partition("-")[2]: sorted(path.name for path in (stage / "checkpoints").iterdir())
        for stage in (reference / "stages").iterdir()
    }
    assert kept == {
        "align-new": ["step-00000002", "step-00000004"],
        "align-mixer": ["step-00000002", "step-00000004"],
        "distill": ["step-00000004", "step-00000005"],
    }


def test_a_finished_run_says_so_and_touches_nothing(
    demo: Any, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in reference.rglob("*") if p.is_file() and p.name != ".lock"}

    before = times()
    monkeypatch.chdir(reference.parents[1])
    result = CliRunner().invoke(app, demo.arguments())
    assert result.exit_code == 0
    assert "finished: runs/tiny; its report is runs/tiny/report/index.html. Start over with --fresh." in result.output
    assert times() == before


def test_a_changed_recipe_is_refused_with_the_difference(
    demo: Any, copy_of_reference: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_reference()
    monkeypatch.chdir(run.parents[1])
    distill = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))["stages"][2]
    changed = {"stages.distill.lr": 0.5, "student.seeder.type": "scratch"}
    result = CliRunner().invoke(app, demo.arguments(changed))
    assert result.exit_code == 1
    assert "runs/tiny holds a run of another recipe; what changed:" in result.stderr
    assert f"  - stages.distill.lr: was {distill['lr']}, now 0.5" in result.stderr
    assert "  - student.seeder.type: was 'mimic', now 'scratch'" in result.stderr
    assert "--fresh" in result.stderr


def test_fresh_starts_over_and_keeps_the_old_folder_beside(
    demo: Any, reference: Path, copy_of_reference: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_reference()
    changed = {"stages.distill.steps": 1}
    _, told = demo.run(monkeypatch, run.parents[1], changed, fresh=True)
    assert "the old run is kept in runs/tiny.old-1" in told.notes
    assert demo.content(run.with_name("tiny.old-1")) == demo.content(reference)
    # The stages before the changed one are as they were, the changed one is not.
    assert _tensors_equal(demo.weights(run, 2), demo.weights(reference, 2))
    assert not _tensors_equal(demo.weights(run, 3), demo.weights(reference, 3))


def test_two_processes_cannot_have_one_run_folder(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo.start(tmp_path, demo.arguments())
    try:
        _wait_for((tmp_path / "runs" / "tiny" / "recipe.toml").exists, first)
        os.kill(first.pid, signal.SIGSTOP)  # so that it cannot finish before the other one asks
        monkeypatch.chdir(tmp_path)
        second = CliRunner().invoke(app, demo.arguments())
        fresh = CliRunner().invoke(app, [*demo.arguments(), "--fresh"])
    finally:
        first.kill()
        first.communicate()
    for refused in (second, fresh):
        assert refused.exit_code == 1
        assert "runs/tiny is in use by another linearize process" in refused.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]


def _killed_run(demo: Any, cwd: Path, moments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    (cwd / "moments.json").write_text(json.dumps(moments))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_run.py")), "moments.json", "--", *demo.arguments()],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attempts: list[dict[str, Any]] = json.loads(done.stdout)
    return attempts


def _assert_same(demo: Any, run: Path, reference: Path, note: object = "") -> None:
    found, expected = demo.content(run), demo.content(reference)
    assert found.keys() == expected.keys(), note
    different = [name for name in expected if found[name] != expected[name]]
    assert different == [], note


def _tensors_equal(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "weights.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def _damage(checkpoint: Path, how: str) -> None:
    weights = checkpoint / "weights.safetensors"
    match how:
        case "truncated weights":
            os.truncate(weights, weights.stat().st_size // 2)
        case "a flipped bit":
            optimizer = checkpoint / "optimizer.safetensors"
            content = bytearray(optimizer.read_bytes())
            content[-1] ^= 1
            optimizer.write_bytes(content)
        case "no manifest":
            (checkpoint / "manifest.json").unlink()
        case "an empty folder":
            shutil.rmtree(checkpoint)
            checkpoint.mkdir()


def _wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
