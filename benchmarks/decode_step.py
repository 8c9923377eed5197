"""Ways to compile a decoding step, beside each other: milliseconds a token through ``generate()``, and kernels' time.

    python benchmarks/decode_step.py --out decode_step --budget 450

builds students of a named shape with random weights (``linearize bench`` has the same) and lets each answer one prompt
with a cache of fixed size, under each way to compile. A time is that of the further tokens of a long answer, less those
of a short one, so that nothing waits for single tokens. Beside it stand the times of the compiled step alone, called
again and again, and of the kernels in it. Results go to ``decode_step.jsonl``, a line each as soon as it is there. What
fails leaves a line that says why; what there is no time for within the budget (in seconds) is left out. Ways are
tried as they are listed, for one model after the other.

Ways: "default" is what transformers does; "waiting" is the same, but asks after every token whether it was the last;
"unchecked" leaves out torch's check of what the graph was made for; "products" writes products with one row as
reductions, which inductor fuses and tunes (``coordinate_descent_tuning``); "combined" also puts independent ones into
one kernel (``combo_kernels``); "tuned" tries the kernels of products (``max_autotune``); "narrow" is "products" with a
state in bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig

from linearize.inference.measure import prompt_ids
from linearize.inference.shapes import ShapeOptions, shape_subjects
from linearize.pipeline.environment import describe_environment
from linearize.plugin.discovery import Plugins
from linearize.student import ahead

GRAPHS = {"triton.cudagraphs": True}
PRODUCTS = GRAPHS | {"coordinate_descent_tuning": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "waiting": {},
    "unchecked": {},
    "products": PRODUCTS,
    "combined": PRODUCTS | {"combo_kernels": True},
    "tuned": PRODUCTS | {"max_autotune": True},
    "narrow": PRODUCTS,
}
"""Way -> options of inductor; without any it is transformers' own mode, "reduce-overhead"."""
SHORT = 8
"""Tokens of the short answer; in these a graph is captured."""


def compile_config(way: str, device: str) -> CompileConfig:
    """What ``generate()`` compiles by; a CPU runs the graph as it is."""
    if device == "cpu":
        config = CompileConfig(backend="eager", mode=None)
        config._compile_all_devices = True
        return config
    return CompileConfig(mode=None, options=dict(OPTIONS[way])) if OPTIONS[way] else CompileConfig()


class Steps:
    """Stands before a model's compiled step and keeps what it was called with last."""

    def __init__(self, model: Any) -> None:
        self.compile, self.step, self.inputs = model.get_compiled_call, None, dict[str, Any]()
        model.get_compiled_call = self._compiled

    def _compiled(self, config: Any) -> Any:
        self.step = self.compile(config)
        return self

    def __call__(self, **inputs: Any) -> Any:
        """The step's output."""
        self.inputs = inputs
        assert self.step is not None  # generate() asks for it first
        return self.step(**inputs)


@contextlib.contextmanager
def prepared(way: str, model: Any) -> Iterator[None]:
    """What a way is besides its options."""
    accelerators = ahead.ACCELERATORS
    model.config.state_dtype = "bfloat16" if way == "narrow" else "float32"
    try:
        if way == "waiting":
            ahead.ACCELERATORS = ()
        yield
    finally:
        ahead.ACCELERATORS = accelerators
        model.config.state_dtype = "float32"


def unchecked(way: str) -> Any:
    """Leaves out the check, once everything is compiled."""
    return torch.compiler.set_stance("default", skip_guard_eval_unsafe=way == "unchecked")


def measure(way: str, model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The times of one way, in milliseconds, and the kernels that take most of them."""
    ids_BT = prompt_ids(model, arguments.prompt)
    config = compile_config(way, arguments.device)

    def answer(new_tokens: int) -> float:
        options = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None,
            cache_implementation="static", max_cache_len=arguments.prompt + arguments.steps, compile_config=config,
        )  # fmt: skip
        synchronize(arguments.device)
        begin = time.perf_counter()
        model.generate(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=options)
        synchronize(arguments.device)
        return 1e3 * (time.perf_counter() - begin)

    steps = Steps(model)
    try:
        with prepared(way, model):
            compiling = answer(SHORT)
            with unchecked(way):
                each = [
                    (answer(arguments.steps) - answer(SHORT)) / (arguments.steps - SHORT)
                    for _ in range(arguments.rounds)
                ]
                found = {"token_ms": statistics.median(each), "each_ms": each, "first_answer_s": compiling / 1e3}
                return found | alone(steps, arguments)
    finally:
        del model.get_compiled_call


@torch.no_grad()
def alone(steps: Steps, arguments: argparse.Namespace) -> dict[str, Any]:
    """The compiled step called again and again, and on a GPU what its kernels take."""

    def some(calls: int) -> None:
        for _ in range(calls):
            torch.compiler.cudagraph_mark_step_begin()
            steps.step(**steps.inputs, return_dict=True) if "return_dict" not in steps.inputs else steps.step(
                **steps.inputs
            )
        synchronize(arguments.device)

    some(3)
    begin = time.perf_counter()
    some(arguments.steps)
    found: dict[str, Any] = {"step_ms": 1e3 * (time.perf_counter() - begin) / arguments.steps}
    if arguments.device == "cuda":
        calls, activities = 4, [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            some(calls)
        kernels = [event for event in profile.key_averages() if event.self_device_time_total > 0]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        found["kernels_ms"] = sum(event.self_device_time_total for event in kernels) / calls / 1e3
        found["kernels"] = [
            {"name": event.key[:90], "ms": event.self_device_time_total / calls / 1e3, "calls": event.count / calls}
            for event in kernels[:12]
        ]
    return found


def synchronize(device: str) -> None:
    """Waits for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for decode_step.jsonl")
    parser.add_argument("--shape", default="hovle-2.6b")
    parser.add_argument("--mixer", default="mamba2")
    parser.add_argument("--models", nargs="*", default=["linear", "hybrid"])
    parser.add_argument("--ways", nargs="*", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens")
    parser.add_argument("--steps", type=int, default=136, help="tokens of the long answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=450, help="seconds after which no further way is begun")
    return parser.parse_args()


def main() -> None:
    """Measures every way with every model that there is time for."""
    arguments = parse()
    begin = time.perf_counter()
    torch._dynamo.config.recompile_limit = 64
    arguments.out.mkdir(parents=True, exist_ok=True)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    shape = ShapeOptions(arguments.shape, arguments.mixer)
    subjects = shape_subjects(
        shape, Plugins.discover(), device=arguments.device, dtype=str(dtype).removeprefix("torch.")
    )
    with (arguments.out / "decode_step.jsonl").open("w", encoding="utf-8") as lines:

        def tell(line: dict[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            print(json.dumps(line), flush=True)

        tell(
            {
                "environment": describe_environment(torch.device(arguments.device)),
                "options": {**vars(arguments), "out": ""},
            }
        )
        for subject in subjects:
            if subject.name not in arguments.models:
                continue
            model = subject.load(dtype, torch.device(arguments.device))
            before = ""
            for way in arguments.ways:
                if time.perf_counter() - begin > arguments.budget:
                    tell({"model": subject.name, "way": way, "left_out": "no time"})
                    continue
                if (before and OPTIONS[way] != OPTIONS[before]) or way == "narrow":
                    torch._dynamo.reset()
                before = way
                try:
                    tell({"model": subject.name, "way": way, **measure(way, model, arguments)})
                except Exception as error:
                    tell({"model": subject.name, "way": way, "failed": repr(error)[:500]})
                    traceback.print_exc()
            del model


if __name__ == "__main__":
    main()
