"""One optimizer-step loop on Accelerate, for every objective; it resumes to the sample and to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from linearize.data.prefetch import prefetch
from linearize.data.samples import SampleReader
from linearize.data.unfit import UnfitRecords
from linearize.distill.checkpoint import Checkpoint, read_latest, write_checkpoint
from linearize.distill.finite import FiniteWatch, keep_batch, not_finite
from linearize.distill.losses import SiteError
from linearize.distill.metrics import Progress, StageLog
from linearize.distill.objectives import Measured, Objective
from linearize.distill.optimize import StageOptimizer
from linearize.errors import RunError
from linearize.files.json_file import write_sealed
from linearize.files.names import fingerprint
from linearize.plan.plan import StagePlan
from linearize.protocols import TOKEN_PAD, Batch, Sample
from linearize.student.convert import linearized_sites


class StageListener(Protocol):
    """Who is told how a stage goes: the progress display."""

    def step(self, step: int, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        ...

    def warn(self, text: str) -> None:
        """Something that a person should read although the run goes on."""
        ...


@dataclass(frozen=True, slots=True)
class StageContext:
    """All that one stage needs.

    Attributes:
        draw: the sample of a number; numbers run on through all stages.
        reader: makes batches of samples, on the CPU.
        unfit: what the teacher does not take.
        first_sample: number of the stage's first sample.
        in_workers: has steps prepared by other processes; None: a thread does it.
        key: hash of all that determines this stage's result.
        checkpoint_every, log_every: in optimizer steps.
    """

    model: nn.Module
    accelerator: Accelerator
    plan: StagePlan
    objective: Objective
    draw: Callable[[int], Sample]
    reader: SampleReader
    unfit: UnfitRecords
    first_sample: int
    folder: Path
    key: str
    checkpoint_every: int
    log_every: int
    listener: StageListener
    in_workers: (
        Callable[[Callable[[int], list[Batch]], range], AbstractContextManager[Iterator[list[Batch]]]] | None
    ) = None


def mixer_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every mixer parameter of the model by "site.parameter"; what checkpoints hold."""
    return {
        f"{module.site.index}.{name}": parameter.detach()
        for module in linearized_sites(model)
        if module.mixer is not None
        for name, parameter in module.mixer.named_parameters()
    }


def load_mixer_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what ``mixer_tensors`` gave.

    Raises:
        RunError: the tensors are not those of this model's mixers.
    """
    own = mixer_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[:4]
        raise RunError(
            f"the checkpoint's mixers are not this recipe's: {', '.join(odd)} stand on one side only. "
            "Start with --fresh"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def run_stage(context: StageContext) -> dict[str, Any]:
    """Runs a stage from its newest whole checkpoint, or from the model as it stands, and returns its summary.

    The summary is also written to ``done.json``; the model's mixers then hold the stage's result.

    Raises:
        RunError: training diverged, or the disk is full.
    """
    stage = context.plan.stage
    trained = free_parameters(context.model, context.plan)
    optimizer = StageOptimizer(stage, trained, _decay_constants(context.model))
    progress = _resume(context, optimizer)
    log = StageLog(context.folder, progress, writes=context.accelerator.is_main_process)
    watch = FiniteWatch(trained)
    with _steps(context, progress.step) as steps, training_mode(context.model, context.plan):
        for batches in steps:
            # What a mixer draws while it trains depends on the step alone, so a resumed run draws it again.
            torch.manual_seed(int(fingerprint([context.key, progress.step, context.accelerator.process_index]), 16))
            measured, tokens = _gradients(context, batches, trained)
            watch.before_update(measured.loss)
            lr = optimizer.step(progress.step)
            log.add(measured, tokens)
            watch.after_update(progress.step)
            is_last = progress.step == stage.steps
            is_checkpoint = is_last or progress.step % context.checkpoint_every == 0
            if is_checkpoint or progress.step % context.log_every == 0:
                _refuse_bad_step(context, watch)
                line = log.line(lr)
                if context.accelerator.is_main_process:
                    log.write(line)
                    context.listener.step(progress.step, line)
            if is_checkpoint:
                _save(context, optimizer, progress)
    return _finish(context, progress)


def free_parameters(model: nn.Module, planned: StagePlan) -> dict[str, nn.Parameter]:
    """Freezes the whole model but the stage's parameters, which it returns by "site.parameter"."""
    model.requires_grad_(False)
    mixers = {module.site.index: module.mixer for module in linearized_sites(model)}
    trained: dict[str, nn.Parameter] = {}
    for site, names in planned.trained.items():
        mixer = mixers[site]
        assert mixer is not None  # every site that a stage trains was given one
        trained.update({f"{site}.{name}": mixer.get_parameter(name) for name in names})
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


@contextmanager
def training_mode(model: nn.Module, planned: StagePlan) -> Iterator[None]:
    """The mixers of the stage in training mode; the teacher stays in eval mode, where it is the same each time."""
    mixers = [
        slot.mixer for slot in linearized_sites(model) if slot.mixer is not None and slot.site.index in planned.sites
    ]
    for mixer in mixers:
        mixer.train()
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.eval()


def _decay_constants(model: nn.Module) -> set[str]:
    """Names, as "site.parameter", of every mixer parameter with the role "decay"."""
    return {
        f"{module.site.index}.{name}"
        for module in linearized_sites(model)
        if module.mixer is not None
        for name, roles in module.mixer.roles().items()  # type: ignore[operator]
        if "decay" in roles
    }


def _resume(context: StageContext, optimizer: StageOptimizer) -> Progress:
    checkpoint, damaged = read_latest(context.folder / "checkpoints")
    for line in damaged:
        context.listener.warn(line)
    if checkpoint is None:
        return Progress()
    load_mixer_tensors(context.model, checkpoint.weights)
    optimizer.load_state_tensors(checkpoint.optimizer)
    return Progress(**checkpoint.progress)


def _steps(context: StageContext, first_step: int) -> AbstractContextManager[Iterator[list[Batch]]]:
    """This process's share of every optimizer step from ``first_step`` on, prepared ahead by whoever does it."""
    stage = context.plan.stage
    rank, world = context.accelerator.process_index, context.accelerator.num_processes

    def prepare(step: int) -> list[Batch]:
        start = context.first_sample + step * stage.batch_size
        return _batches(context, range(start + rank, start + stage.batch_size, world))

    steps = range(first_step, stage.steps)
    return context.in_workers(prepare, steps) if context.in_workers else prefetch(map(prepare, steps), depth=2)


def _batches(context: StageContext, samples: Sequence[int]) -> list[Batch]:
    stage = context.plan.stage

    def make(drawn: Sequence[Sample]) -> list[Batch]:
        return context.reader.batches(
            drawn,
            max_padding=stage.max_padding,
            max_tokens=stage.max_tokens,
            multiple=stage.pad_to_multiple,
            pack=stage.pack,
        )

    return context.unfit.give_way(lambda: [context.draw(sample) for sample in samples], make)


def _gradients(
    context: StageContext, batches: Sequence[Batch], trained: Mapping[str, nn.Parameter]
) -> tuple[Measured, int]:
    """Gradients of one optimizer step, the mean over all batches of all processes; returns measurements and tokens."""
    accelerator = context.accelerator
    own_tokens = sum(int((batch.token_kind_BT != TOKEN_PAD).sum()) for batch in batches)
    weight, tokens = _sum_over_processes(accelerator, sum(map(context.objective.weight, batches)), own_tokens)
    step = Measured()
    for batch in batches:
        with accelerator.autocast():
            moved = batch.to(accelerator.device)
            step.merge(context.objective.backward(context.model, moved, context.plan.sites, max(weight, 1)))
    if accelerator.num_processes > 1:
        # No DDP wrapper: sites backpropagate one by one, which DDP's reducer silently gets wrong.
        for parameter in trained.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(gradient, reduction="sum")
        step.loss = accelerator.reduce(torch.as_tensor(step.loss, device=accelerator.device), reduction="sum")
        if context.objective.is_layerwise:
            _sum_site_errors(accelerator, step, context.plan.sites)
    return step, tokens


def _sum_over_processes(accelerator: Accelerator, *counts: int) -> list[int]:
    if accelerator.num_processes == 1:
        return list(counts)
    totals = torch.tensor(counts, dtype=torch.int64, device=accelerator.device)
    return [int(total) for total in accelerator.reduce(totals, reduction="sum").tolist()]


def _sum_site_errors(accelerator: Accelerator, step: Measured, sites: Sequence[int]) -> None:
    """Makes each site's error that of all processes; one that had no conversation in this step counts nothing."""
    errors = [step.sites.setdefault(index, SiteError()) for index in sites]
    sums = [[float(error.squared_error), float(error.variance)] for error in errors]
    reduced = accelerator.reduce(torch.tensor(sums, dtype=torch.float64, device=accelerator.device), reduction="sum")
    for error, (squared_error, variance) in zip(errors, reduced.tolist(), strict=True):
        error.squared_error, error.variance = squared_error, variance


def _refuse_bad_step(context: StageContext, watch: FiniteWatch) -> None:
    """Keeps the batch of the first step that was not finite, and ends the run there.

    Raises:
        RunError: there was one; names it, its sites, and how to go on from the last checkpoint.
    """
    bad = watch.first()
    if bad is None:
        return
    stage, start = context.plan.stage, context.first_sample + (bad.step - 1) * context.plan.stage.batch_size
    samples = range(start, start + stage.batch_size)
    kept = context.folder / f"bad-step-{bad.step:08d}"
    if context.accelerator.is_main_process:
        keep_batch(kept, samples, _batches(context, samples))
    befallen = f"the {bad.what} of {_site_list(bad.sites())}" if bad.parameters else "the loss"
    raise RunError(
        f"training diverged in stage '{stage.name}': {befallen} was not finite at step {bad.step}. Its samples "
        f"{samples.start}..{samples.stop - 1} are kept in {kept}. {_way_on(context)}"
    )


def _refuse_bad_state(context: StageContext, state: Checkpoint) -> None:
    """Raises RunError where weights or moments are not finite, though no loss, gradient or update was."""
    names = not_finite(state.weights)
    what = "weights" if names else "optimizer state"
    names = names or not_finite(state.optimizer)
    if names:
        raise RunError(
            f"training diverged in stage '{context.plan.stage.name}': after step {state.step} the {what} "
            f"({', '.join(names[:4])}) is not finite, so no checkpoint was written. {_way_on(context)}"
        )


def _way_on(context: StageContext) -> str:
    """What to do about a stage that diverged."""
    stage = context.plan.stage
    clip = "" if stage.clip is not None else f" or set stages.{stage.name}.clip,"
    checkpoint, _ = read_latest(context.folder / "checkpoints")
    place = "the start of the stage" if checkpoint is None else f"its checkpoint of step {checkpoint.step}"
    return (
        f"Lower stages.{stage.name}.lr (now {stage.lr:g}),{clip} and type the command again: it goes on from {place} "
        "with the new value; finished stages stay"
    )


def _site_list(sites: Sequence[int]) -> str:
    shown = ", ".join(map(str, sites[:8])) + (", ..." if len(sites) > 8 else "")
    return f"site {shown}" if len(sites) == 1 else f"sites {shown}"


def _save(context: StageContext, optimizer: StageOptimizer, progress: Progress) -> None:
    state = Checkpoint(progress.step, mixer_tensors(context.model), optimizer.state_tensors(), progress.state())
    _refuse_bad_state(context, state)
    if context.accelerator.is_main_process:
        write_checkpoint(context.folder / "checkpoints", state)
    context.accelerator.wait_for_everyone()


SUMMARY_KEYS = frozenset({"name", "objective", "steps", "seconds", "tokens", "first_loss", "last_loss"})
"""What everybody who reads a stage's summary counts on."""


def _finish(context: StageContext, progress: Progress) -> dict[str, Any]:
    summary = {
        "key": context.key,
        "name": context.plan.stage.name,
        "objective": context.plan.objective,
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "trained_parameters": context.plan.num_trained,
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "first_sites": progress.first_sites,
        "sites": progress.last_sites,
    }
    if context.accelerator.is_main_process:
        write_sealed(context.folder / "done.json", summary)
    return summary
