"""A run from recipe to report: what is done is found done, what is left is done, in order."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from linearize.data.bad_record_file import BadRecordFile
from linearize.data.packing import fill_rows
from linearize.data.samples import SampleReader
from linearize.data.stream import SampleStream
from linearize.data.unfit import UnfitRecords
from linearize.data.workers import is_worker, prepared_by_workers
from linearize.distill.checkpoint import read_latest
from linearize.distill.loop import SUMMARY_KEYS, StageContext, load_mixer_tensors, run_stage
from linearize.distill.rehearsal import MOST_LOOKED_AT, choose_samples, prove_packing, rehearse
from linearize.distill.seeding import hash_weights, seed_student, summarise
from linearize.errors import RunError
from linearize.evaluate.runner import SharedAnswers, evaluate
from linearize.files.aligned import align_tensors
from linearize.files.json_file import read_json, read_sealed, write_json
from linearize.files.names import fingerprint
from linearize.files.run_folder import RunFolder, disk_errors, is_first_process
from linearize.pipeline.display import Display
from linearize.pipeline.environment import describe_environment
from linearize.pipeline.processes import processes, wait_for_first_process
from linearize.plan.plan import Plan, StagePlan
from linearize.plugin.components import ResolvedComponent
from linearize.proof.teacher import prove_teacher
from linearize.protocols import BadRecord, Batch, DataSource, Sample, SharesAccount, TeacherAdapter
from linearize.recipe.load import LoadedRecipe
from linearize.recipe.model import Component
from linearize.report.page import write_report
from linearize.report.results import write_results
from linearize.report.sections import warnings_of
from linearize.student.convert import linearized_sites
from linearize.student.modeling import save_student


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a finished run lies and what it found; ``results`` is the content of report/results.json."""

    folder: Path
    results: Mapping[str, Any]


def run_pipeline(
    recipe: LoadedRecipe,
    adapter: TeacherAdapter,
    source: DataSource,
    plan: Plan,
    folder: RunFolder,
    display: Display,
    teacher_answers: Path | None = None,
) -> RunResult:
    """Seeds, distils, evaluates, saves and reports; goes on from wherever an earlier process stopped.

    Args:
        source: of the training's samples.
        teacher_answers: the folder in which several runs, one after another or at the same time, share what
            one teacher answers.

    Raises:
        RunError: the folder cannot be used, the disk is full, or training diverged.
        CheckpointError: the teacher cannot be loaded.
    """
    is_first = is_first_process()
    with ExitStack() as stack:
        stack.enter_context(disk_errors(folder.path))
        if is_first:
            stack.enter_context(folder.locked())
            for change in folder.claim(recipe):
                display.note(f"the recipe changed: {change}")
        if folder.is_whole():
            page = folder.path / "report" / "index.html"
            display.note(f"This run is finished: {folder.path}; its report is {page}. Start over with --fresh.")
            return RunResult(folder.path, _read_results(folder))
        accelerator = stack.enter_context(processes(recipe))
        if accelerator.is_main_process:
            folder.done.unlink(missing_ok=True)  # of a run that is not whole any more
            write_json(folder.environment, describe_environment(accelerator.device))
        model = load_teacher_model(recipe, adapter, accelerator.device)
        if accelerator.is_main_process:
            teacher = _same_teacher(folder, model)
        samples: Sequence[Sample] = []
        reader = SampleReader(adapter)
        stages = plan.stages_with_steps()
        if not stages or _summary(folder.stage(max(stages), stages[max(stages)].stage.name)) is None:
            samples, batch = UnfitRecords(reader, source).give_way(
                lambda: _first_samples(recipe, source, plan),
                lambda drawn: (drawn, reader.batch(choose_samples(drawn, reader.num_tokens)).to(accelerator.device)),
            )
            with_mixer = plan.mixers_by_site()
            prove_teacher(model, adapter, [site for site in plan.sites if site.index in with_mixer], batch)
        reports = seed_student(model, adapter, recipe, plan, accelerator.device)
        if accelerator.is_main_process:
            write_json(folder.seeding, {"teacher_sha256": teacher, **summarise(reports)})
        display.plan(recipe, plan, model, accelerator.device)
        if samples:
            objectives = [recipe.components[f"stages.{number}.objective"].build() for number in stages]
            packed = _prove_packing(model, reader, samples, {planned.stage.pack for planned in stages.values()})
            batches = [packed.get(planned.stage.pack, batch) for planned in stages.values()]
            rehearse(model, accelerator, list(zip(stages.values(), objectives, batches, strict=True)))
        key = _run_stages(recipe, adapter, source, plan, folder, display, accelerator, model)
        if accelerator.is_main_process:
            _cast_mixers(recipe, model)
            shared = None
            if teacher_answers is not None:
                shared = SharedAnswers(teacher_answers, _asking(recipe, teacher, accelerator.device))
            _evaluate(recipe, adapter, folder, display, model, key, shared)
            results = write_results(folder.path)
            origin = {"recipe": recipe.tables(), "results": _scores(results)}
            save_student(model, folder.student, adapter.processor(), origin, plugins=recipe.plugins)
            display.note(f"student saved: {folder.student}")
            write_report(folder.path)
            folder.finish(key)
            for text in warnings_of(results):
                display.warn(text)
            display.results(results, folder.report / "index.html")
        else:
            wait_for_first_process(folder)
        return RunResult(folder.path, _read_results(folder))


def load_teacher_model(recipe: LoadedRecipe, adapter: TeacherAdapter, device: torch.device) -> nn.Module:
    """The teacher in the recipe's dtype, in eval mode: dropout would make teacher and student disagree by chance."""
    model: nn.Module = adapter.load(dtype=getattr(torch, recipe.recipe.run.dtype), device=device)
    align_tensors(model)
    return model.eval()


def _same_teacher(folder: RunFolder, model: nn.Module) -> str:
    """The hash of the teacher's weights.

    Raises:
        RunError: the run began with other ones. The recipe names the teacher's files, and their content may change.
    """
    found = hash_weights(model)
    seeding = read_json(folder.seeding)
    before = seeding.get("teacher_sha256", found) if isinstance(seeding, dict) else found
    if before != found:
        raise RunError(
            f"{folder.path} was begun with another teacher: its weights had hash {before[:12]}, now {found[:12]}. "
            "Put the teacher's files back as they were, or start over with --fresh, which keeps the old folder beside"
        )
    return found


def _run_stages(
    recipe: LoadedRecipe,
    adapter: TeacherAdapter,
    source: DataSource,
    plan: Plan,
    folder: RunFolder,
    display: Display,
    accelerator: Accelerator,
    model: nn.Module,
) -> str:
    """Runs what is left of the stages and returns the key of the last one; the model then holds its result."""
    is_main = accelerator.is_main_process
    left_out = BadRecordFile(folder.path, rank=accelerator.process_index, warn=display.warn if is_main else None)
    left_out.follow(source)
    stream, reader = _stream(recipe, source), SampleReader(adapter)
    unfit = UnfitRecords(reader, source)

    def draw(number: int) -> Sample:
        sample = stream[number]
        if not is_worker():  # which hands over what it leaves out
            left_out.follow(source)
        return sample

    def found(records: Sequence[BadRecord]) -> None:
        left_out.note(records)
        if isinstance(source, SharesAccount):
            source.take_over(records)

    workers = recipe.recipe.run.workers
    in_workers = functools.partial(prepared_by_workers, num_workers=workers, source=source, found=found)

    key = _first_key(recipe)
    first_sample = 0
    for number, planned in plan.stages_with_steps().items():
        key = fingerprint([key, recipe.tables()["stages"][number]])
        path = folder.stage(number, planned.stage.name)
        summary = _finished(path, planned, model)
        if summary is None:
            display.stage_started(number, planned)
            context = StageContext(
                model=model,
                accelerator=accelerator,
                plan=planned,
                objective=recipe.components[f"stages.{number}.objective"].build(),
                draw=draw,
                reader=reader,
                unfit=unfit,
                first_sample=first_sample,
                folder=path,
                key=key,
                checkpoint_every=recipe.recipe.run.checkpoint_every,
                log_every=recipe.recipe.run.log_every,
                listener=display,
                in_workers=in_workers if workers else None,
            )
            summary = run_stage(context)
        display.stage_finished(number, summary)
        first_sample += planned.stage.steps * planned.stage.batch_size
    return key


def _first_samples(recipe: LoadedRecipe, source: DataSource, plan: Plan) -> list[Sample]:
    """Some samples of the first step, on which the run is tried out."""
    return _stream(recipe, source).take(0, min(plan.stages[0].stage.batch_size, MOST_LOOKED_AT))


def _prove_packing(
    model: nn.Module, reader: SampleReader, samples: Sequence[Sample], widths: Set[int | None]
) -> dict[int | None, Batch]:
    """Holds a packed row of each width against its samples alone; gives the rows, of those that several samples fit."""
    device = next(model.parameters()).device
    rows: dict[int | None, Batch] = {}
    for width in (width for width in widths if width is not None):
        lengths = [reader.num_tokens(sample) for sample in samples]
        row = max(fill_rows(lengths, width), key=len)
        if len(row) > 1:
            chosen = [samples[number] for number in row]
            [rows[width]] = (batch.to(device) for batch in reader.packed(chosen, width))
            prove_packing(model, [reader.batch([one]).to(device) for one in chosen], rows[width])
    return rows


def _stream(recipe: LoadedRecipe, source: DataSource) -> SampleStream:
    return SampleStream(source, seed=recipe.recipe.run.seed, shuffle=getattr(source, "shuffle", False))


def _first_key(recipe: LoadedRecipe) -> str:
    """Hash of all that determines the student before its first stage and the samples that it will see."""
    tables = recipe.tables()
    run = {name: tables["run"][name] for name in ("seed", "dtype")}
    return fingerprint([run, tables["teacher"], tables["student"], tables["data"]])


def _finished(path: Path, planned: StagePlan, model: nn.Module) -> dict[str, Any] | None:
    """The summary of a stage that is done, its result loaded into the model; None when there is work left."""
    summary = _summary(path)
    if summary is None:
        return None
    # Damage is the loop's to report, which then takes the stage's last steps again. The key is not compared: the folder
    # was claimed for this recipe, and an older release made its keys of fewer options.
    checkpoint, _ = read_latest(path / "checkpoints")
    if checkpoint is None or checkpoint.step != planned.stage.steps:
        return None
    load_mixer_tensors(model, checkpoint.weights)
    return summary


def _summary(path: Path) -> dict[str, Any] | None:
    """What a stage's folder says of it once it is done; None before."""
    summary: dict[str, Any] | None = read_sealed(path / "done.json")
    return summary if summary is not None and summary.keys() >= SUMMARY_KEYS else None


def _cast_mixers(recipe: LoadedRecipe, model: nn.Module) -> None:
    """Gives trained float32 mixers the dtype of the rest, so that what is evaluated is what is saved."""
    for site in linearized_sites(model):
        if site.mixer is not None:
            site.mixer.to(getattr(torch, recipe.recipe.run.dtype))


def _asking(recipe: LoadedRecipe, teacher_sha256: str, device: torch.device) -> str:
    """Names all that the teacher's answers depend on."""
    tables = recipe.tables()
    asked = {name: value for name, value in tables["evaluate"].items() if name != "evaluators"}
    return fingerprint([teacher_sha256, tables["teacher"], asked, tables["run"]["dtype"], device.type])


def _evaluate(
    recipe: LoadedRecipe,
    adapter: TeacherAdapter,
    folder: RunFolder,
    display: Display,
    model: nn.Module,
    key: str,
    shared: SharedAnswers | None,
) -> None:
    table = recipe.recipe.evaluate
    if not table.benchmarks:
        return
    benchmarks = {name: one.build() for name, one in _named(recipe, "benchmarks", table.benchmarks).items()}
    with display.evaluation() as progress:
        evaluate(
            model,
            adapter,
            benchmarks,
            batch_size=table.batch_size,
            max_new_tokens=table.max_new_tokens,
            folder=folder.evaluation,
            progress=progress,
            dial_questions=table.dial_questions,
            num_examples=table.num_examples,
            evaluators=_named(recipe, "evaluators", table.evaluators),
            key=key,
            shared=shared,
        )


def _named(recipe: LoadedRecipe, key: str, tables: Sequence[Component]) -> dict[str, ResolvedComponent]:
    """The components of a list of the evaluation by the names that the results give them."""
    types = [table.type for table in tables]
    names = [name if types.count(name) == 1 else f"{name}-{number + 1}" for number, name in enumerate(types)]
    return {name: recipe.components[f"evaluate.{key}.{number}"] for number, name in enumerate(names)}


def _scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the results that a model card shows."""
    return {name: results.get(name) for name in ("average_retention", "tasks", "kl", "top1_agreement")}


def _read_results(folder: RunFolder) -> Mapping[str, Any]:
    results = read_json(folder.results)
    if not isinstance(results, dict):
        raise RunError(f"{folder.results} was changed while the run went on; type the same command again")
    return results
