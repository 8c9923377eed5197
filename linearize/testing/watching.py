"""Watching a model from outside while it runs: what goes through its sites, and where attention is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from linearize.protocols import AttentionSite, Batch
from linearize.student.site import rotary_angles

Call = tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor, Tensor]


@torch.no_grad()
def record_sites(model: Any, sites: Sequence[AttentionSite], batch: Batch) -> dict[int, Call]:
    """Per site: its input, its angles, what its output projection got, and what came out."""
    inputs: dict[int, tuple[Tensor, Any]] = {}
    before: dict[int, Tensor] = {}
    calls: dict[int, Call] = {}

    def watch(site: AttentionSite) -> list[Any]:
        attention = model.get_submodule(site.path)
        projection = attention.get_submodule(site.output_projection)

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x_BTD = args[0] if args else kwargs["hidden_states"]
            inputs[site.index] = (x_BTD, rotary_angles(kwargs.get("position_embeddings")))

        def project(_: nn.Module, args: tuple[Any, ...]) -> None:
            before[site.index] = args[0]

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[site.index] = (*inputs[site.index], before[site.index], output[0])

        return [
            attention.register_forward_pre_hook(enter, with_kwargs=True),
            projection.register_forward_pre_hook(project),
            attention.register_forward_hook(leave),
        ]

    hooks = [hook for site in sites for hook in watch(site)]
    try:
        model(**batch.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


class _AttentionCounter(TorchFunctionMode):
    """Notes the module in whose forward each softmax attention is computed."""

    def __init__(self, stack: list[str], calls: list[str]) -> None:
        super().__init__()
        self.stack, self.calls = stack, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_softmax = func in (F.softmax, torch.softmax, Tensor.softmax) and args[0].dim() == 4
        if func is F.scaled_dot_product_attention or is_softmax:
            self.calls.append(self.stack[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def attention_calls(model: nn.Module) -> Iterator[list[str]]:
    """Inside, the path of the module that computes each softmax attention is collected, in order."""
    stack, calls = [""], list[str]()

    def enter(path: str) -> Any:
        return lambda *_: stack.append(path)

    def leave(*_: Any) -> None:
        stack.pop()

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(path)))
        hooks.append(module.register_forward_hook(leave))
    try:
        with _AttentionCounter(stack, calls):
            yield calls
    finally:
        for hook in hooks:
            hook.remove()
