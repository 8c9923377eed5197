"""linearize from Python: load a teacher, load a student, run a recipe, compare variants of it.

torch is imported when one of them is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.files.run_folder import RUNS, RunFolder, disk_errors, is_first_process
from linearize.inference.targets import find_student, resolve_teacher
from linearize.pipeline.display import Display, SilentDisplay
from linearize.plan.check import caveats_of, check_recipe
from linearize.plan.plan import CheckedRecipe
from linearize.plugin.discovery import Plugins
from linearize.protocols import TeacherAdapter
from linearize.recipe.toml import to_inline

if TYPE_CHECKING:
    import torch

    from linearize.comparison.findings import ComparisonResult
    from linearize.inference.options import BenchOptions
    from linearize.inference.results import BenchResult
    from linearize.inference.shapes import ShapeOptions
    from linearize.pipeline.run import RunResult

Overrides = Sequence[str] | Mapping[str, Any]
"""["stages.distill.steps=200"] as on the command line, or {"stages.distill.steps": 200}."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        model: a transformers model in eval mode; ``generate()`` and ``forward()`` work as for any other.
        processor: its transformers processor.
        adapter: what linearize knows of it: its attention sites, their weights, how conversations become batches.
    """

    model: Any
    processor: Any
    adapter: TeacherAdapter


def load_teacher(
    type: str,
    checkpoint: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    plugins: Plugins | None = None,
    **options: Any,
) -> Teacher:
    """The teacher that a recipe's ``[teacher]`` table with the same keys describes.

    Args:
        type: name of a registered teacher, such as "hovle".
        checkpoint: what that teacher takes as a checkpoint: a folder, a hub id; None for its default.
        dtype: of the weights.
        plugins: where the teacher is registered; None: those that are installed.
        options: other keys of the teacher's table.

    Raises:
        UnknownNameError: no installed plug-in brings such a teacher.
        RecipeError: an option is unknown or has a wrong value.
        CheckpointError: the checkpoint cannot be read.
        PluginFault: the plug-in fails in a way that it does not announce.
    """
    import torch

    from linearize.files.aligned import align_tensors

    if checkpoint is not None:
        options["checkpoint"] = str(checkpoint)
    asked_by = f"load_teacher('{type}')"
    adapter: TeacherAdapter = resolve_teacher(type, options, plugins or Plugins.discover(), asked_by).build()
    for caveat in caveats_of(adapter):
        warnings.warn(caveat, stacklevel=2)
    model = adapter.load(dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype, device=device)
    align_tensors(model)
    return Teacher(model.eval(), adapter.processor(), adapter)


def load_student(
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    plugins: Plugins | None = None,
) -> Any:
    """The student in a folder: one that linearize saved, or one in a published format that a plug-in reads.

    Args:
        folder: a student's, or that of a finished run.
        dtype: of the weights; None as they are stored.
        plugins: where its mixers, its teacher or its format are registered; None: those that are installed.

    Returns:
        A transformers model in eval mode.

    Raises:
        CheckpointError: the folder is no student, or is damaged.
        RunError: the run has not finished.
        PluginError: a plug-in that the student needs is missing.
    """
    return find_student(folder).load(dtype=dtype, device=device, plugins=plugins or Plugins.discover())


def check(
    recipe: str | Path | Mapping[str, Any], overrides: Overrides = (), *, plugins: Plugins | None = None
) -> CheckedRecipe:
    """Checks all of a recipe that can be known without loading a weight.

    Args:
        plugins: where its components are registered, such as ``Plugins.discover()`` to which more was added in code;
            None: those that are installed.

    Raises:
        RecipeError: with every problem at once, by TOML path.
    """
    return check_recipe(recipe, override_texts(overrides), plugins or Plugins.discover())


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    fresh: bool = False,
    display: Display | None = None,
    plugins: Plugins | None = None,
) -> RunResult:
    """Runs a recipe to its end, or goes on where an earlier process stopped: seed, distil, evaluate, save, report.

    Args:
        recipe: a TOML file, or the same tables as a mapping.
        overrides: keys to change, each typed and checked.
        fresh: start over; an existing run folder is kept beside under another name.
        display: who is told; None prints nothing.
        plugins: as for ``check``.

    Returns:
        The run folder, below ``runs/`` of the current directory, and the content of its report/results.json.

    Raises:
        RecipeError: the recipe has problems; lists them all, and nothing was loaded yet.
        LinearizeError: anything else that the caller can put right; its text says how.
    """
    checked = check(recipe, overrides, plugins=plugins)
    shown: Display = SilentDisplay() if display is None or not is_first_process() else display
    folder = RunFolder(RUNS / checked.recipe.recipe.run.name)
    if fresh and folder.path.exists() and is_first_process():
        with folder.locked():
            shown.note(f"the old run is kept in {folder.set_aside()}")
    if not folder.is_whole():
        checked = checked.with_tokens()

    from linearize.pipeline.run import run_pipeline

    try:
        return run_pipeline(checked.recipe, checked.adapter, checked.source, checked.plan, folder, shown)
    finally:
        shown.close()


def compare(
    recipe: str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    mixers: Sequence[str] | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    fresh: bool = False,
    display: Display | None = None,
) -> ComparisonResult:
    """Runs a recipe in several variants, or goes on where an earlier process stopped, and compares what they found.

    Every cell and seed is a run in a process of its own, with the plug-ins that are installed; finished ones are
    reused, and one that fails is told and leaves the others alone. The page is report/index.html in the result's
    folder.

    Args:
        recipe: a TOML file, or the same tables as a mapping; its ``[compare]`` table says what is varied.
        overrides: keys to change in all cells, keys of ``compare`` too.
        mixers: types of mixers to compare, instead of the table's.
        seeds: runs per cell, instead of the table's.
        jobs: runs at a time. More than one share the machine's cores, get its GPUs, or those that CUDA_VISIBLE_DEVICES
            lists, in turn, and print into their logs alone.
        fresh: start over; an existing folder is kept beside under another name.
        display: who is told; None prints nothing, and what the runs print is in their logs alone.

    Raises:
        RecipeError: with every problem of the table and of every cell; nothing has run then.
        RunError: the folder holds something else, is in use, or the disk is full; or `compare.seconds` is set and a
            cell's steps could not be timed.
    """
    from linearize.comparison.cells import plan_comparison
    from linearize.comparison.equal_time import with_equal_time
    from linearize.comparison.findings import collect
    from linearize.comparison.folder import ComparisonFolder
    from linearize.comparison.page import write_report
    from linearize.comparison.running import measure_speed, refuse_launcher, run_cells

    refuse_launcher()
    comparison = plan_comparison(recipe, override_texts(overrides), mixers, seeds)
    shown: Display = SilentDisplay() if display is None else display
    folder = ComparisonFolder(RUNS / comparison.name)
    if fresh and folder.path.exists():
        with folder.locked():
            shown.note(f"the old comparison is kept in {RunFolder(folder.path).set_aside()}")
    try:
        with disk_errors(folder.path), folder.locked():
            comparison = with_equal_time(comparison, folder, shown, show=display is not None and jobs == 1, jobs=jobs)
            left = sum(not folder.is_finished(cell, seed) for cell, seed in comparison.runs())
            most_jobs = folder.claim(comparison, max(1, min(jobs, left)))
            for caveat in comparison.cells[0].checked.plan.caveats:  # of the teacher, which all cells share
                shown.warn(caveat)
            failures = run_cells(comparison, folder, shown, show=display is not None and jobs == 1, jobs=jobs)
            speed = measure_speed(comparison, folder, shown, show=display is not None)
            result = collect(comparison, folder, failures, speed, most_jobs)
            write_report(result)
            return result
    finally:
        shown.close()


def bench(
    targets: Sequence[str] = (),
    options: BenchOptions | None = None,
    *,
    shape: ShapeOptions | None = None,
    out: str | Path | None = None,
    display: Display | None = None,
    plugins: Plugins | None = None,
) -> BenchResult:
    """Measures what students and teachers take to read a prompt and to decode, by context length, all alike.

    Cells that an earlier call with the same models, settings, versions and hardware finished are not measured again.

    Args:
        targets: folders of runs (student and teacher), of students, or teachers as "type" or "type:checkpoint".
        options: what is measured, and how; None: as suits the device.
        shape: instead of targets, models of a named shape with random weights.
        out: folder for bench.json; None: bench/ inside a single run, else below bench/ of the current directory.
        display: who is told; None prints nothing.
        plugins: as for ``check``.

    Raises:
        LinearizeError: a target or an option is wrong; nothing was loaded then.
    """
    from linearize.inference.options import BenchOptions
    from linearize.inference.results import bench_targets

    shown: Display = SilentDisplay() if display is None else display
    try:
        return bench_targets(
            targets, options or BenchOptions(), Path(out) if out is not None else None, shown,
            plugins or Plugins.discover(), shape,
        )  # fmt: skip
    finally:
        shown.close()


def override_texts(overrides: Overrides) -> list[str]:
    """Overrides as the "path.to.key=value" items of the command line, values in TOML."""
    if isinstance(overrides, str):
        raise TypeError(f"overrides are a list or a mapping; got the text {overrides!r}, write [{overrides!r}]")
    if isinstance(overrides, Mapping):
        return [f"{path}={to_inline(value)}" for path, value in overrides.items()]
    return list(overrides)
