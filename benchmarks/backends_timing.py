"""How long kernel backends take beside softmax attention, at one length after another, batch 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from backends_agreement import OPERATIONS, Sizes, carried_state, families_of, mixer_config, recurrence_inputs
from linearize_mamba2.mixer import Mamba2Mixer
from torch import Tensor

from linearize.ops.backends import choose

SSD_BACKENDS, CONV_BACKENDS = ("torch", "fla", "mamba_ssm"), ("torch", "fla", "causal_conv1d")
ATTENTION, CONVOLUTION, MIXER = "softmax attention", "convolution", "Mamba-2 mixer"
OPS = (ATTENTION, *OPERATIONS, CONVOLUTION, MIXER)
CONV_WIDTH = 2
UNCOUNTED = 2


@dataclass(frozen=True, slots=True)
class Time:
    """Median milliseconds of one call."""

    op: str
    backend: str
    tokens: int
    forward_ms: float
    both_ms: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for every measurement.

    Attributes:
        usable: names of the backends to time.
        torch_most: longest length at which the torch reference is timed.
    """

    sizes: Sizes
    device: str
    dtype: torch.dtype
    usable: Collection[str]
    torch_most: int
    repeats: int

    def recurrences(self, tokens: int) -> list[str]:
        """Backends of the recurrence to time at one length."""
        return [name for name in SSD_BACKENDS if name in self.usable and (name != "torch" or tokens <= self.torch_most)]

    def leaf(self, *shape: int) -> Tensor:
        """Normal numbers, drawn on the device: hundreds of millions take seconds on a CPU."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype).requires_grad_()


Measurement = tuple[str, str, Callable[[], list[Time]]]
"""Operation, backend, and what measures it."""


def measurements(tokens: int, bench: Bench, ops: Collection[str]) -> Iterator[Measurement]:
    """Every one of ``ops`` by every backend at one length; tensors live until the next operation."""
    if ATTENTION in ops:
        yield from _of_attention(tokens, bench)
    for family in OPERATIONS:
        if family in ops:
            yield from _of_recurrence(family, tokens, bench)
    if CONVOLUTION in ops:
        yield from _of_convolution(tokens, bench)
    if MIXER in ops:
        yield from _of_mixer(tokens, bench)


def _of_attention(tokens: int, bench: Bench) -> Iterator[Measurement]:
    sizes = bench.sizes
    q = bench.leaf(1, tokens, sizes.heads, sizes.head_dim)
    k, v = (bench.leaf(1, tokens, sizes.groups, sizes.head_dim) for _ in range(2))
    yield _one(ATTENTION, "sdpa", tokens, _attention, [q, k, v], [q, k, v], bench)


def _of_recurrence(family: str, tokens: int, bench: Bench) -> Iterator[Measurement]:
    leaves = recurrence_inputs(family, 1, tokens, bench.sizes, bench.device, bench.dtype)
    # Prefill starts from nothing.
    for name in carried_state(family, 1, bench.sizes, bench.device):
        del leaves[name]
    for name in bench.recurrences(tokens):
        if family in families_of(name):
            call = partial(choose(OPERATIONS[family], name, bench.device).kernel, **leaves)
            yield _one(family, name, tokens, call, [], list(leaves.values()), bench)


def _of_convolution(tokens: int, bench: Bench) -> Iterator[Measurement]:
    channels = (bench.sizes.heads + 2 * bench.sizes.groups) * bench.sizes.head_dim
    inputs = [bench.leaf(1, tokens, channels), bench.leaf(channels, CONV_WIDTH)]
    for name in CONV_BACKENDS:
        if name in bench.usable:
            yield _one(CONVOLUTION, name, tokens, choose("conv", name, bench.device).kernel, inputs, inputs, bench)


def _of_mixer(tokens: int, bench: Bench) -> Iterator[Measurement]:
    inputs = [bench.leaf(1, tokens, bench.sizes.hidden)]
    for name in bench.recurrences(tokens):
        mixer = Mamba2Mixer(mixer_config(name, bench.device), bench.sizes.site())
        mixer.initialize("scratch", torch.Generator().manual_seed(0))
        mixer = mixer.to(bench.device, bench.dtype)
        yield _one(MIXER, name, tokens, mixer, inputs, [*inputs, *mixer.parameters()], bench)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
    q_heads, k_heads, v_heads = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return (F.scaled_dot_product_attention(q_heads, k_heads, v_heads, is_causal=True, enable_gqa=True),)


def _one(
    op: str, backend: str, tokens: int, call: Callable[..., Any], inputs: Sequence[Tensor], leaves: Sequence[Tensor],
    bench: Bench,
) -> Measurement:  # fmt: skip
    return op, backend, partial(_timed, op, backend, tokens, lambda: call(*inputs)[0], leaves, bench)


def _timed(
    op: str, backend: str, tokens: int, call: Callable[[], Tensor], leaves: Sequence[Tensor], bench: Bench
) -> list[Time]:
    """Forward without gradients, and forward with backward."""
    with torch.no_grad():
        forward = median_ms(call, bench.device, bench.repeats)
        toward = torch.ones_like(call())
    both = median_ms(lambda: torch.autograd.grad(call(), leaves, toward), bench.device, bench.repeats)
    return [Time(op, backend, tokens, forward, both)]


def median_ms(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median wall time of one call after two that are not counted."""
    times = []
    for index in range(repeats + UNCOUNTED):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= UNCOUNTED:
            times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[len(times) // 2]
