"""How fast teacher and students generate: the same greedy decoder, the same prompts, one process.

The time of a token is that of a longer answer less that of an answer of one token, so reading the prompt is not in it;
every answer has the length asked for, whatever tokens it consists of. One sequence at a time. The models are measured
in turn, several times over, and the median counts, so that what slows the machine down for a while slows down all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch

from linearize.evaluate.answers import pad_id
from linearize.evaluate.modes import inference
from linearize.evaluate.runner import list_questions
from linearize.pipeline.processes import make_accelerator
from linearize.pipeline.run import load_teacher_model
from linearize.plan.check import check_recipe
from linearize.plugin.discovery import Plugins
from linearize.student.modeling import load_student

if TYPE_CHECKING:
    from linearize.plugin.tables import Table
    from linearize.protocols import Batch

TEACHER = "teacher"
PROMPTS = 8
"""At most; the first question of each task, task by task."""

Progress = Callable[[str, int, int], None]


def measure_decoding(
    tables: Table,
    students: Mapping[str, Path],
    *,
    new_tokens: int,
    rounds: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Milliseconds per generated token of the recipe's teacher and of every student.

    Args:
        tables: a recipe; its teacher, device, dtype, threads and questions are used.
        students: name -> folder of a saved student.
        new_tokens: timed tokens per answer.
        rounds: measurements of each model.

    Returns:
        teacher, and students by name, each with ms (the median) and ms_by_round; failed, a text for each student that
        could not be measured; prompts, prompt_tokens (mean length), new_tokens.
    """
    checked = check_recipe(tables, (), Plugins.discover())
    recipe, adapter = checked.recipe, checked.adapter
    device = make_accelerator(recipe).device
    dtype = getattr(torch, recipe.recipe.run.dtype)
    benchmarks = {path: recipe.components[path].build() for path in recipe.components if "benchmarks" in path}
    prompts = [item.questions[0] for item in list_questions(benchmarks)][:PROMPTS]
    batches = [adapter.batch([prompt], for_generation=True).to(device) for prompt in prompts]

    def load(name: str) -> Any:
        if name == TEACHER:
            return load_teacher_model(recipe, adapter, device)
        return load_student(students[name], dtype=dtype, device=device)

    names = [TEACHER, *students]
    found: dict[str, list[float]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for position, name in enumerate(names):
            try:
                # One model is held at a time: none has less memory for the others.
                if name not in failed:
                    found[name].append(1000 * seconds_per_token(load(name), batches, new_tokens))
            except Exception as error:
                if name == TEACHER:
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
                del found[name]
            if progress is not None:
                progress(name, number * len(names) + position + 1, rounds * len(names))
    times = {name: {"ms": median(each), "ms_by_round": each} for name, each in found.items()}
    return {
        TEACHER: times.pop(TEACHER),
        "students": times,
        "failed": failed,
        "prompts": len(batches),
        "prompt_tokens": fmean(float(batch.inputs["attention_mask"].sum()) for batch in batches),
        "new_tokens": new_tokens,
    }


def seconds_per_token(model: Any, batches: Sequence[Batch], new_tokens: int) -> float:
    """Mean time of a greedy token behind the first one, over the prompts; each is answered once before."""
    with inference(model):
        for batch in batches:
            _generate(model, batch, 2)
        spent = [_generate(model, batch, 1 + new_tokens) - _generate(model, batch, 1) for batch in batches]
    return fmean(spent) / new_tokens


def _generate(model: Any, batch: Batch, count: int) -> float:
    """Seconds of an answer of exactly ``count`` tokens."""
    _wait(model)
    start = time.perf_counter()
    model.generate(
        **batch.inputs, do_sample=False, num_beams=1, min_new_tokens=count, max_new_tokens=count,
        pad_token_id=pad_id(model),
    )  # fmt: skip
    _wait(model)
    return time.perf_counter() - start


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
