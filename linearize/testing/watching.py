"""Watching a model from outside while it runs: what goes through its sites, and where attention is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from linearize.proof.calls import SiteCall, watch
from linearize.protocols import AttentionSite, Batch


@torch.no_grad()
def record_sites(model: Any, sites: Sequence[AttentionSite], batch: Batch, **options: Any) -> dict[int, SiteCall]:
    """What happens at each site while the model runs once, by site index.

    Args:
        options: further arguments of the model, such as ``use_cache``.
    """
    calls = {site.index: SiteCall() for site in sites}

    hooks = [hook for site in sites for hook in watch(model.get_submodule(site.path), site, calls[site.index])]
    try:
        model(**batch.inputs, **{"use_cache": False, **options})
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
