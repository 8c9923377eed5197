"""What a decoded token costs: teacher and students, with a growing cache and with one of fixed size and a graph.

    python benchmarks/decode.py --out decode --lengths 2048 32768 105472

builds the models of ``long_context.py`` (HoVLE-2.6B's sizes, random weights) and lets each answer one prompt through
plain ``generate()``, greedily: "dynamic" is transformers' default cache, "static" is ``cache_implementation="static"``,
with which transformers compiles the step and replays it as a CUDA graph. A first answer of each warms up and compiles;
then rounds follow in which every model answers once, so that what disturbs the machine disturbs all. Times include
all that ``generate()`` does for a token. Results go to ``decode.json`` in the output folder, round by round, and as a
table to the console. ``--smoke`` tries it on a CPU with tiny sizes, whose graphs are run but not compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from long_context import GIB, build
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from linearize.pipeline.environment import describe_environment

MODELS = ("teacher:dynamic", "teacher:static", "linear:dynamic", "linear:static", "hybrid:dynamic", "hybrid:static")
UNTIMED = 3
"""First tokens of an answer that do not count: a graph may be captured in them."""


@dataclass(slots=True)
class Answer:
    """One prompt read and answered.

    Attributes:
        first_ms: milliseconds until the first token.
        token_ms: median milliseconds of a further token, the first ones left out.
    """

    first_ms: float
    token_ms: float


@dataclass(slots=True)
class Cell:
    """A model, a kind of cache and a length.

    Attributes:
        warm_up_s: seconds of the answer that compiles.
        peak_bytes: most GPU memory of an answer, with the model's weights and without other models; None on a CPU.
        failed: why there are no answers; empty where there are.
    """

    model: str
    cache: str
    prompt_tokens: int
    warm_up_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    peak_bytes: int | None = None
    failed: str = ""

    def token_ms(self) -> float:
        """The median over rounds."""
        return statistics.median(answer.token_ms for answer in self.answers)


class Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """False for every row."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def answer(model: Any, cache: str, tokens: int, arguments: argparse.Namespace) -> Answer:
    """Reads a prompt of random ids and decodes."""
    generator = torch.Generator().manual_seed(tokens)
    vocabulary = model.config.language.vocab_size - 1
    ids_BT = torch.randint(2, vocabulary, (arguments.batch, tokens), generator=generator).to(model.device)
    options: dict[str, Any] = {}
    if cache == "static":
        options["cache_implementation"] = "static"
        if arguments.device == "cpu":
            options["compile_config"] = CompileConfig(backend="eager", mode=None)
            options["compile_config"]._compile_all_devices = True
    if arguments.prefill_chunk and not model.runs_attention_alone:
        options["prefill_chunk_size"] = arguments.prefill_chunk
    config = GenerationConfig(
        max_new_tokens=arguments.new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None, **options
    )
    clock = Clock(model.device)
    begin = time.perf_counter()
    model.generate(
        input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config,
        stopping_criteria=StoppingCriteriaList([clock]),
    )  # fmt: skip
    steps = [1e3 * (after - before) for before, after in zip(clock.seconds, clock.seconds[1:], strict=False)]
    return Answer(1e3 * (clock.seconds[0] - begin), statistics.median(steps[UNTIMED:]))


def measure(cells: Sequence[Cell], models: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Warms all of ``cells`` up, which are of one length, and then answers in rounds."""
    for cell in cells:
        begin = time.perf_counter()
        _try(cell, models, arguments, counts=False)
        cell.warm_up_s = time.perf_counter() - begin
    for number in range(arguments.rounds):
        for cell in cells:
            if not cell.failed:
                _try(cell, models, arguments, counts=True)
        print(f"{cells[0].prompt_tokens:,} tokens: round {number + 1} of {arguments.rounds}", flush=True)


def _try(cell: Cell, models: dict[str, Any], arguments: argparse.Namespace, *, counts: bool) -> None:
    model, on_gpu = models[cell.model], arguments.device == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    try:
        answered = answer(model, cell.cache, cell.prompt_tokens, arguments)
    except torch.OutOfMemoryError as error:
        cell.failed = f"out of memory: {error}".splitlines()[0]
        return
    if counts:
        cell.answers.append(answered)
    if on_gpu:
        weights = sum(part.numel() * part.element_size() for part in model.parameters())
        peak = torch.cuda.max_memory_allocated() - before + weights
        cell.peak_bytes = max(peak, cell.peak_bytes or 0)


def table(cells: Sequence[Cell]) -> str:
    """A row per cell; times with the range over rounds, and how many times faster than each teacher."""
    lines = ["| tokens | model | cache | ms/token | least to most | first token ms | warm-up s | memory GiB |"]
    lines[0] += " than teacher, dynamic | than teacher, static |"
    lines += ["|---:|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for cell in cells:
        if cell.failed:
            lines.append(f"| {cell.prompt_tokens:,} | {cell.model} | {cell.cache} | {cell.failed} |||||||")
            continue
        each = [one.token_ms for one in cell.answers]
        first = statistics.median(one.first_ms for one in cell.answers)
        memory = f"{cell.peak_bytes / GIB:.2f}" if cell.peak_bytes else ""
        faster = []
        for cache in ("dynamic", "static"):
            teacher = next((one for one in cells if (one.model, one.cache, one.prompt_tokens, one.failed)
                            == ("teacher", cache, cell.prompt_tokens, "")), None)  # fmt: skip
            faster.append(f"{teacher.token_ms() / cell.token_ms():.2f}x" if teacher else "")
        times = [f"{cell.token_ms():.2f}", f"{min(each):.2f} to {max(each):.2f}", f"{first:.0f}"]
        row = [f"{cell.prompt_tokens:,}", cell.model, cell.cache, *times, f"{cell.warm_up_s:.0f}", memory, *faster]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for decode.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="model:cache")
    parser.add_argument("--mixer", default="mamba2", help="type of the students' mixers")
    parser.add_argument("--backend", default="auto", help="of their recurrence")
    parser.add_argument("--conv-backend", default="auto")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 32768, 105472], help="prompt tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows of the prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill-chunk", type=int, default=0, help="tokens that students read at a time; 0: all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and lengths, fp32: for a CPU")
    arguments = parser.parse_args()
    arguments.dtype = torch.float32 if arguments.smoke else torch.bfloat16
    if arguments.smoke:
        arguments.lengths, arguments.new_tokens, arguments.rounds = [16, 64], 8, 2
    return arguments


def main() -> None:
    """Measures one length after the other, the shortest first, and writes what there is after each."""
    arguments = parse()
    # Several models of one class, and lengths of a static cache, compile the same code.
    torch._dynamo.config.recompile_limit = 64
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys(name.split(":")[0] for name in arguments.models)
    models = {kind: build(kind, arguments) for kind in kinds}
    for kind, model in models.items():
        model.runs_attention_alone = kind == "teacher"
    environment = describe_environment(torch.device(arguments.device))
    options = {name: str(value) if isinstance(value, Path | torch.dtype) else value
               for name, value in vars(arguments).items()}  # fmt: skip
    cells: list[Cell] = []
    for tokens in sorted(arguments.lengths):
        torch._dynamo.reset()
        here = [Cell(*name.split(":"), tokens) for name in arguments.models]
        cells += here
        measure(here, models, arguments)
        found = {"environment": environment, "options": options, "cells": [asdict(cell) for cell in cells]}
        (arguments.out / "decode.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\n{environment['device']}, torch {environment['packages']['torch']}, commit {environment['commit']}\n")
    print(table(cells))


if __name__ == "__main__":
    main()
