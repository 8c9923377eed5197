"""LoRA adapters that a checkpoint keeps beside its weights, merged into them: W + scale * B A.

Source: Hu et al., arXiv 2106.09685, section 4.1. The layout is the peft library's, which is not needed to read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

from linearize.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, ENDS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
"""Options that change what an adapter does; where one is set, the adapter is refused."""
NEXT = (
    "Look at teacher.adapters; or merge it with the library that made it, save the model, and give that folder as "
    "teacher.checkpoint."
)


def merge_adapter(model: nn.Module, adapter: str, *, checkpoint: str, revision: str) -> None:
    """Adds an adapter to the weights that it adapts, computed in float32.

    Args:
        adapter: a folder, or a folder inside the checkpoint.
        checkpoint: a folder or a hub id.

    Raises:
        CheckpointError: it cannot be read, is no plain LoRA, or has a tensor that fits no linear layer of the model.
    """
    where: dict[str, Any] = {} if Path(adapter).is_dir() else {"subfolder": adapter}
    root = checkpoint if where else adapter
    try:
        files = [cached_file(root, name, revision=revision, **where) for name in (CONFIG, WEIGHTS)]
        options = json.loads(Path(files[0]).read_text(encoding="utf-8"))
        state = load_file(files[1])
    except Exception as error:
        raise _refusal(f"'{adapter}' of '{checkpoint}' cannot be read: {type(error).__name__}: {error}") from error
    scale = _scale(options, adapter)
    pairs = _pairs(state, adapter)
    if not pairs:
        raise _refusal(f"'{adapter}' of '{checkpoint}' holds no tensor")
    for name, (a, b) in pairs.items():
        linear = _linear(model, name, adapter)
        if (b.shape[0], a.shape[1]) != tuple(linear.weight.shape) or a.shape[0] != b.shape[1]:
            raise _refusal(
                f"'{adapter}' has B {tuple(b.shape)} and A {tuple(a.shape)} for {name}, whose weight is "
                f"{tuple(linear.weight.shape)}"
            )
        with torch.no_grad():
            linear.weight.copy_(linear.weight.float() + scale * (b.float() @ a.float()).to(linear.weight.device))


def _scale(options: dict[str, Any], adapter: str) -> float:
    odd = [name for name in UNSUPPORTED if options.get(name)]
    if options.get("peft_type") != "LORA" or odd:
        what = f"{options.get('peft_type')} with {', '.join(odd)}" if odd else str(options.get("peft_type"))
        raise _refusal(f"'{adapter}' is {what}; plain LoRA can be merged here")
    numbers = {name: options.get(name) for name in ("r", "lora_alpha")}
    wrong = [f"{name} = {number!r}" for name, number in numbers.items() if not _is_positive(number)]
    if wrong:
        raise _refusal(f"'{adapter}' has {', '.join(wrong)} in its {CONFIG}; expected numbers above 0")
    rank, alpha = float(options["r"]), float(options["lora_alpha"])
    return alpha / (rank**0.5 if options.get("use_rslora") else rank)


def _is_positive(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and number > 0


def _pairs(state: dict[str, Tensor], adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> A and B."""
    halves: list[dict[str, Tensor]] = [{}, {}]
    for key, tensor in state.items():
        end = next((number for number, end in enumerate(ENDS) if key.endswith(end)), None)
        if end is None or not key.startswith(PREFIX):
            raise _refusal(f"'{adapter}' holds {key}; expected names {PREFIX}*{ENDS[0]} and {PREFIX}*{ENDS[1]}")
        halves[end][key[len(PREFIX) : -len(ENDS[end])]] = tensor
    if alone := sorted(halves[0].keys() ^ halves[1].keys()):
        raise _refusal(f"'{adapter}' has only one of A and B for {', '.join(alone)}")
    return {name: (a, halves[1][name]) for name, a in halves[0].items()}


def _linear(model: nn.Module, name: str, adapter: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        found = "no such module" if module is None else f"a {type(module).__name__} there"
        raise _refusal(f"'{adapter}' adapts {name}, but {type(model).__name__} has {found}; expected a linear layer")
    return module


def _refusal(what: str) -> CheckpointError:
    return CheckpointError(f"the adapter {what.rstrip('.')}. {NEXT}")
