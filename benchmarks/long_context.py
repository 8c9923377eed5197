"""What a long context costs teacher and students: milliseconds per decoded token, and memory, at growing length.

    python benchmarks/long_context.py --lengths 2048 8192 32768 105472

builds a HoVLE of HoVLE-2.6B's sizes with random weights, whose times and memory are those of trained ones, and of it
students with a mixer at every attention site ("linear"), or at three of four ("hybrid"). Each model reads a prompt of
random token ids, one sequence, and then decodes greedily with transformers' default cache. ``--smoke`` makes everything
small enough to try it on a CPU, where memory is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from linearize_hovle.adapter import attention_sites
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.modeling import HovleForConditionalGeneration

from linearize.pipeline.environment import describe_environment
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student.convert import convert, release_teacher, set_linear
from linearize.student.mixers import build_mixer
from linearize.student.state import CACHE_NAME

GIB = 2**30
KEPT = 4
"""The hybrid keeps one attention of so many, the last of them, as mmMamba's does."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one model at one length.

    Attributes:
        prefill_ms: reading the prompt.
        decode_ms: median of a decoded token.
        memory: peak bytes on the GPU while decoding, weights included; None on a CPU.
    """

    prefill_ms: float
    decode_ms: float
    memory: int | None


def hovle_config(arguments: argparse.Namespace) -> HovleConfig:
    """HoVLE-2.6B's sizes (8 + 24 layers), or tiny ones."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 8}
    layers, vocabulary, longest = (8, 24), 92553, max(arguments.lengths) + arguments.new_tokens
    if arguments.smoke:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        layers, vocabulary = (1, 3), 200
    tower = {**sizes, "vocab_size": vocabulary, "max_position_embeddings": longest}
    return HovleConfig(
        embedding_config={**tower, "num_hidden_layers": layers[0], "image_token_id": vocabulary - 1},
        text_config={**tower, "num_hidden_layers": layers[1]},
    )


def build(kind: str, arguments: argparse.Namespace) -> Any:
    """The teacher, or a student made of it, with random weights."""
    config = hovle_config(arguments)
    torch.manual_seed(0)
    torch.set_default_dtype(arguments.dtype)
    with torch.device(arguments.device):
        model = HovleForConditionalGeneration(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    if kind != "teacher":
        sites = attention_sites(config)
        linear = [site for site in sites if kind == "linear" or site.index % KEPT != KEPT - 1]
        spec = Plugins.discover().registry.get(MixerSpec, arguments.mixer)
        options = spec.config_class()(backend=arguments.backend, conv_backend=arguments.conv_backend)
        mixers = {site.index: build_mixer(spec, options, site) for site in linear}
        for mixer in mixers.values():
            mixer.initialize("scratch", torch.Generator().manual_seed(1))  # type: ignore[operator]
            mixer.to(arguments.device, arguments.dtype)
        convert(model, sites, mixers)
        set_linear(model, mixers)
        release_teacher(model)
    return model


@torch.inference_mode()
def cost(model: Any, tokens: int, new_tokens: int) -> Cost:
    """One prompt read and answered; kernels are compiled and tuned by another one before."""
    on_gpu = model.device.type == "cuda"
    ids_BT = torch.randint(0, model.config.language.vocab_size - 1, (1, tokens), device=model.device)
    model(input_ids=ids_BT, use_cache=True, logits_to_keep=1)
    if on_gpu:
        torch.cuda.empty_cache()
    (output, prefill_ms), steps = _timed(model, input_ids=ids_BT), []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(new_tokens):
        token_BT = output.logits[:, -1:].argmax(-1)
        output, milliseconds = _timed(model, input_ids=token_BT, **{CACHE_NAME: output[CACHE_NAME]})
        steps.append(milliseconds)
    return Cost(prefill_ms, statistics.median(steps), torch.cuda.max_memory_allocated() if on_gpu else None)


def _timed(model: Any, **inputs: Any) -> tuple[Any, float]:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return output, 1e3 * (time.perf_counter() - start)


def table(found: dict[str, dict[int, Cost]], lengths: Iterable[int]) -> str:
    """A row per length and model; what a model takes of the teacher's time and memory beside it."""
    lines = ["| tokens | model | prefill ms | decode ms/token | times faster | memory GiB | of the teacher's |"]
    lines += ["|---:|---|---:|---:|---:|---:|---:|"]
    for tokens in lengths:
        for kind, costs in found.items():
            if tokens not in costs:
                continue
            mine, teacher = costs[tokens], found.get("teacher", {}).get(tokens)
            faster = f"{teacher.decode_ms / mine.decode_ms:.2f}" if teacher else ""
            memory = f"{mine.memory / GIB:.2f}" if mine.memory else ""
            share = f"{mine.memory / teacher.memory:.0%}" if teacher and mine.memory and teacher.memory else ""
            cells = [f"{tokens:,}", kind, f"{mine.prefill_ms:.0f}", f"{mine.decode_ms:.2f}", faster, memory, share]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=["teacher", "linear", "hybrid"], help="teacher, linear, hybrid")
    parser.add_argument("--mixer", default="mamba2", help="type of the students' mixers")
    parser.add_argument("--backend", default="auto", help="of their recurrence")
    parser.add_argument("--conv-backend", default="auto")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192, 32768, 105472], help="prompt tokens")
    parser.add_argument("--new-tokens", type=int, default=32, help="decoded tokens; their median counts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and lengths, fp32: for a CPU")
    arguments = parser.parse_args()
    arguments.dtype = torch.float32 if arguments.smoke else torch.bfloat16
    if arguments.smoke:
        arguments.lengths, arguments.new_tokens = [16, 64], 3
    return arguments


def main() -> None:
    """Measures one model after the other; one that runs out of memory at a length goes without it."""
    arguments = parse()
    found: dict[str, dict[int, Cost]] = {}
    for kind in arguments.models:
        model = build(kind, arguments)
        costs = found.setdefault(kind, {})
        for tokens in sorted(arguments.lengths):
            try:
                costs[tokens] = cost(model, tokens, arguments.new_tokens)
            except torch.OutOfMemoryError:
                print(f"{kind} at {tokens:,} tokens: out of memory", flush=True)
                break
            print(f"{kind} at {tokens:,} tokens: {costs[tokens]}", flush=True)
        del model
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    environment = describe_environment(torch.device(arguments.device))
    print(f"\n{environment['device']}, torch {environment['packages']['torch']}, commit {environment['commit']}\n")
    print(table(found, sorted(arguments.lengths)))


if __name__ == "__main__":
    main()
