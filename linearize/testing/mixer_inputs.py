"""What the checks of mixers and seeders are made on: installed plug-ins, random weights, modules with a hook."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from linearize.plugin.discovery import Plugins
from linearize.protocols import AttentionSite, AttentionWeights, State
from linearize.testing.numbers import draw


@contextmanager
def changed_output(module: nn.Module) -> Iterator[None]:
    """Within it a forward hook adds to what ``module`` returns something that depends on that alone."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        y, *rest = output if isinstance(output, tuple) else (output,)
        y = y + 0.3 * torch.tanh(2 * y)
        return (y, *rest) if isinstance(output, tuple) else y

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def described(state: State) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor of a state."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


@functools.cache
def installed_plugins() -> Plugins:
    """Every installed plug-in; found once, as none comes or goes while tests run."""
    return Plugins.discover()


def attention_weights(site: AttentionSite, *, biases: bool, norms: bool = False) -> AttentionWeights:
    """Random weights of a site's attention, in the shapes that the protocol gives them."""
    q, k, v = (
        site.num_heads * site.key_dim, site.num_key_value_heads * site.key_dim,
        site.num_key_value_heads * site.value_dim,
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "q": (q, site.hidden_size), "k": (k, site.hidden_size), "v": (v, site.hidden_size),
        "o": (site.hidden_size, site.num_heads * site.value_dim),
    }  # fmt: skip
    if biases:
        shapes |= {"q_bias": (q,), "k_bias": (k,), "v_bias": (v,), "o_bias": (site.hidden_size,)}
    if norms:
        shapes |= {"q_norm": (site.key_dim,), "k_norm": (site.key_dim,)}
    drawn: dict[str, Any] = {
        name: draw(*shape, seed=seed, dtype=torch.float32, device="cpu")
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return AttentionWeights(**drawn, scale=site.key_dim**-0.5, rope_theta=10_000.0)
