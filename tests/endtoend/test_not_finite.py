"""A number that is not finite ends the run in the step that made it, and is never kept."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import FIXTURES
from safetensors.torch import load_file

import linearize
from linearize.distill import loop
from linearize.errors import RunError

pytestmark = pytest.mark.slow

FIXTURE = FIXTURES / "run_folder"
RUN = Path("runs/old")


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny teacher and its recipe, in the current directory."""
    shutil.copytree(FIXTURE / "teacher", tmp_path / "teacher")
    shutil.copy(FIXTURE / "recipe.toml", tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, str], None]:
    """Makes one gradient of a stage's step (from 1) NaN, or none where the parameter is ""."""
    gradients = loop._gradients

    def spoil(stage: str, step: int, parameter: str) -> None:
        taken: dict[str, int] = {}

        def spoilt(context: Any, batches: Any, trained: dict[str, torch.nn.Parameter]) -> Any:
            measured = gradients(context, batches, trained)
            taken[context.plan.stage.name] = taken.get(context.plan.stage.name, 0) + 1
            if parameter and (context.plan.stage.name, taken[context.plan.stage.name]) == (stage, step):
                gradient = trained[parameter].grad
                assert gradient is not None
                gradient.view(-1)[0] = math.nan
            return measured

        monkeypatch.setattr(loop, "_gradients", spoilt)

    return spoil


def test_a_bad_last_step_is_not_kept_as_a_finished_stage(spoil: Callable[..., None]) -> None:
    spoil("distill", 5, "2.q_proj.weight")
    with pytest.raises(RunError) as caught:
        linearize.run("recipe.toml")
    told = str(caught.value)
    assert "stage 'distill'" in told
    assert "the gradient of site 2 was not finite at step 5" in told
    assert "stages.distill.lr (now 0.001)" in told
    assert "checkpoint of step 4" in told
    assert "--fresh" not in told
    assert not (RUN / "student").exists()
    assert not (RUN / "stages/2-distill/done.json").exists()
    kept = RUN / "stages/2-distill/bad-step-00000005"
    # Two conversations a step; the four steps of the first stage and four of this one came before.
    assert json.loads((kept / "samples.json").read_text()) == [16, 17]
    assert sum(load_file(path)["input_ids"].shape[0] for path in kept.glob("batch-*.safetensors")) == 2


def test_the_first_bad_step_is_named_though_it_is_noticed_later(spoil: Callable[..., None]) -> None:
    spoil("align", 1, "0.g_proj.weight")
    with pytest.raises(RunError, match=r"stage 'align': the gradient of site 0 was not finite at step 1\b"):
        linearize.run("recipe.toml", {"run.log_every": 4, "run.checkpoint_every": 4})
    assert not list((RUN / "stages/1-align").glob("checkpoints/*"))


def test_after_a_bad_step_the_stage_goes_on_with_another_learning_rate_and_says_so(spoil: Callable[..., None]) -> None:
    spoil("distill", 5, "2.q_proj.weight")
    with pytest.raises(RunError):
        linearize.run("recipe.toml")
    first_stage = (RUN / "stages/1-align/done.json").read_bytes()
    spoil("distill", 0, "")

    result = linearize.run("recipe.toml", {"stages.distill.lr": 1e-4})

    assert (RUN / "stages/1-align/done.json").read_bytes() == first_stage
    [change] = result.results["changes"]
    assert (change["stage"], change["step"], change["changes"]) == ("distill", 4, ["lr: was 0.001, now 0.0001"])
    for page in ("index.html", "report.md"):
        assert "distill went on from step 4 with a changed recipe: lr: was" in (RUN / "report" / page).read_text(), page


def test_an_update_that_overflows_is_named() -> None:
    with pytest.raises(RunError, match=r"stage 'distill': the (update|gradient) of sites? .* not finite at step"):
        linearize.run("recipe.toml", {"stages.distill.lr": 1e30, "stages.distill.lr_schedule.warmup": 0.0})
    assert not (RUN / "student").exists()


def test_a_checkpoint_of_an_older_release_that_is_not_finite_is_passed_over(demo: Any, tmp_path: Path) -> None:
    linearize.run("recipe.toml")
    demo.unfinish(RUN, stage=2)
    newest = demo.weights(RUN, 2)
    weights = load_file(newest / "weights.safetensors")
    next(iter(weights.values())).view(-1)[0] = math.nan
    from linearize.distill.checkpoint import Checkpoint, read_latest

    shutil.rmtree(newest)
    older, _ = read_latest(newest.parent)
    assert older is not None
    _write_as_before(newest, Checkpoint(5, weights, older.optimizer, {**older.progress, "step": 5}))

    found, damaged = read_latest(newest.parent)

    assert found is not None
    assert found.step == 4
    assert "is not finite" in damaged[0]


def test_what_may_not_change_in_a_stage_at_work_is_refused() -> None:
    shutil.copytree(FIXTURE / "runs", "runs")
    (RUN / "done.json").unlink()
    for changes in ({"stages.align.lr": 0.5}, {"stages.distill.lr": 0.5}, {"run.seed": 3}):
        with pytest.raises(RunError, match="holds a run of another recipe"):  # both stages are finished
            linearize.run("recipe.toml", changes)
    (RUN / "stages/2-distill/done.json").unlink()
    with pytest.raises(RunError, match=r"may change: lr, lr_schedule, clip of stage 'distill', which has begun"):
        linearize.run("recipe.toml", {"stages.distill.batch_size": 3})


def _write_as_before(folder: Path, checkpoint: Any) -> None:
    """A checkpoint as 4d56c0e wrote it, whatever its numbers are."""
    from linearize.distill.checkpoint import write_checkpoint

    write_checkpoint(folder.parent, checkpoint)
