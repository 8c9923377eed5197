"""Watching a model from outside while it runs: what goes through its sites, and where attention is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from linearize.protocols import AttentionSite, Batch
from linearize.student.site import rotary_angles


@dataclass(slots=True)
class SiteCall:
    """How the decoder called the module at a site in one forward pass, and what came of it.

    Attributes:
        args, kwargs: of the last call.
        output: what the module returned, whatever it is.
        projected: what the output projection got, call by call.
        num_calls: how often the module was called.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    projected: list[Tensor] = field(default_factory=list)
    num_calls: int = 0

    @property
    def x_BTD(self) -> Tensor:
        """The attention's input."""
        given: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return given

    @property
    def position(self) -> Any:
        """Cos and sin as a mixer gets them; None without."""
        return rotary_angles(self.kwargs.get("position_embeddings"))


@torch.no_grad()
def record_sites(model: Any, sites: Sequence[AttentionSite], batch: Batch, **options: Any) -> dict[int, SiteCall]:
    """What happens at each site while the model runs once, by site index.

    Args:
        options: further arguments of the model, such as ``use_cache``.
    """
    calls = {site.index: SiteCall() for site in sites}

    def watch(site: AttentionSite) -> list[Any]:
        attention, call = model.get_submodule(site.path), calls[site.index]

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call.args, call.kwargs, call.num_calls = args, kwargs, call.num_calls + 1

        def project(_: nn.Module, args: tuple[Any, ...]) -> None:
            call.projected.append(args[0])

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call.output = output

        return [
            attention.register_forward_pre_hook(enter, with_kwargs=True),
            attention.get_submodule(site.output_projection).register_forward_pre_hook(project),
            attention.register_forward_hook(leave),
        ]

    hooks = [hook for site in sites for hook in watch(site)]
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
