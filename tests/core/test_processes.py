"""One run by several processes, as a launcher starts them."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkout import EXAMPLES, environment, python
from safetensors.torch import load_file
from torch import distributed

from linearize.errors import RunError
from linearize.files.run_folder import RunFolder
from linearize.pipeline.processes import LOOK_EVERY_S, processes, wait_for_first_process

pytestmark = pytest.mark.slow

SMALL = (
    "stages.align-new.steps=2", "stages.align-mixer.steps=1", "stages.distill.steps=2", "evaluate.benchmarks=[]",
    "run.device=cpu", "run.log_every=1",
    *(f"stages.{stage}.batch_size=3" for stage in ("align-new", "align-mixer", "distill")),
)  # fmt: skip


def run(folder: Path, *launcher: str) -> Path:
    """A few steps of the first example in ``folder``; returns its run folder."""
    folder.mkdir()
    overrides = [text for override in SMALL for text in ("--set", override)]
    command = [*launcher, "-m", "linearize", "run", EXAMPLES / "mmmamba_hovle.toml"]
    done = python(*command, *overrides, cwd=folder, env=environment(ACCELERATE_USE_CPU="true"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student saved") == 1
    return folder / "runs" / "mmmamba-hovle"


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone")
    shared = run(tmp_path / "shared", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    for stage in ("1-align-new", "3-distill"):
        checkpoint = f"stages/{stage}/checkpoints/step-00000002/weights.safetensors"
        one, two = load_file(alone / checkpoint), load_file(shared / checkpoint)
        assert one.keys() == two.keys()
        # Gradients are summed in another order, and AdamW's first steps turn a difference in the last place of a tiny
        # gradient into up to 2 lr, lr being 3e-3; a lost share of a batch would move most parameters that far.
        moved = [float((tensor - two[name]).abs().mean()) for name, tensor in one.items()]
        assert max(moved) < 1e-4
    sites = [json.loads((path / "stages/1-align-new/done.json").read_text())["sites"] for path in (alone, shared)]
    # Each process centres its own conversations' targets, so the variance of few tokens differs somewhat.
    assert sites[1] == pytest.approx(sites[0], rel=0.2)


def test_the_other_processes_wait_for_the_first_one_as_long_as_it_lives(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    waited: list[str] = []

    def wait() -> None:
        try:
            wait_for_first_process(folder)
            waited.append("finished")
        except RunError as error:
            waited.append(str(error))

    with folder.locked():
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(timeout=2 * LOOK_EVERY_S)
        assert waiting.is_alive()
        folder.finish("key")
        waiting.join(timeout=20)
    assert waited == ["finished"]


def test_the_other_processes_do_not_wait_for_a_first_one_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the first process left .* before the run was finished"):
        wait_for_first_process(RunFolder(tmp_path))


def test_the_process_group_is_destroyed_however_a_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linearize.pipeline.processes.make_accelerator", lambda _: SimpleNamespace(num_processes=2))
    for error in (None, KeyboardInterrupt()):
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        with contextlib.suppress(KeyboardInterrupt), processes(None):  # type: ignore[arg-type]
            assert distributed.is_initialized()
            if error is not None:
                raise error
        assert not distributed.is_initialized()
