"""The processes of one run, as a launcher starts them: how they find each other, wait, and part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed

from linearize.errors import RunError
from linearize.files.run_folder import RunFolder
from linearize.recipe.load import LoadedRecipe

LOOK_EVERY_S = 0.5


@contextmanager
def processes(recipe: LoadedRecipe) -> Iterator[Accelerator]:
    """The accelerator of this process; whatever happens, the process group is destroyed afterwards."""
    accelerator = make_accelerator(recipe)
    try:
        yield accelerator
    finally:
        if accelerator.num_processes > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


def make_accelerator(recipe: LoadedRecipe) -> Accelerator:
    """The accelerator of this process.

    Raises:
        RunError: a GPU is asked for that is not there, or a launcher's processes do not see each other.
    """
    run = recipe.recipe.run
    if run.device == "cuda" and not torch.cuda.is_available():
        raise RunError('run.device = "cuda" asked for, but torch sees no GPU here; use "auto" or "cpu"')
    if run.num_threads is not None:
        torch.set_num_threads(run.num_threads)
    on_cpu = run.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if run.dtype == "bfloat16" else "no")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RunError(
            f"{launched} processes were launched but each works alone (accelerate sees {accelerator.num_processes}); "
            "on CPUs set ACCELERATE_USE_CPU=true before torchrun"
        )
    return accelerator


def wait_for_first_process(folder: RunFolder) -> None:
    """Waits until the first process has evaluated, saved and finished the run, however long that takes.

    It is asked after through the run's folder: a barrier of the process group would give up after its timeout.

    Raises:
        RunError: the first process has ended, and the run is not finished.
    """
    while not folder.done.exists():
        if not folder.is_locked() and not folder.done.exists():
            raise RunError(
                f"the first process left {folder.path} before the run was finished; its own message says why"
            )
        time.sleep(LOOK_EVERY_S)
