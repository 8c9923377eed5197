"""LoRA adapters beside a checkpoint's weights, merged into them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from linearize.errors import CheckpointError
from linearize.protocols.conversation import Conversation, Turn

RANK, ALPHA = 3, 6
ADAPTED = ("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj")
QUESTION = [Conversation((Turn("how many red?", "two"),))]


def load(checkpoint: Path, *adapters: str) -> tuple[TransformersAdapter, Any]:
    adapter = TransformersAdapter(TransformersTeacherConfig(checkpoint=str(checkpoint), adapters=adapters))
    return adapter, adapter.load(dtype=torch.float32, device="cpu")


def make_lora(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: model.get_submodule(name).weight.shape for name in ADAPTED}
    return {
        name: (torch.randn(RANK, shape[1], generator=generator), torch.randn(shape[0], RANK, generator=generator))
        for name, shape in shapes.items()
    }


def write(folder: Path, lora: dict[str, tuple[Tensor, Tensor]], **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | options
    (folder / "adapter_config.json").write_text(json.dumps(config))
    halves = {f"base_model.model.{name}.lora_{half}.weight": tensor.clone()
              for name, pair in lora.items() for half, tensor in zip("AB", pair, strict=True)}  # fmt: skip
    save_file(halves, folder / "adapter_model.safetensors")


@torch.no_grad()
def logits_beside(model: Any, lora: dict[str, tuple[Tensor, Tensor]], scale: float, inputs: Any) -> Tensor:
    """With the adapters as paths of their own beside the layers, as they were trained."""

    def add(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        return lambda _, x, y: y + scale * F.linear(F.linear(x[0], a), b)

    hooks = [model.get_submodule(name).register_forward_hook(add(*pair)) for name, pair in lora.items()]
    logits: Tensor = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
@pytest.mark.parametrize("inside", [True, False])
def test_a_merged_adapter_does_what_it_did_beside_the_weights(
    checkpoint: Callable[[str], Path], tmp_path: Path, rslora: bool, scale: float, inside: bool
) -> None:
    folder = checkpoint("phi4_multimodal")
    adapter, plain = load(folder)
    lora = make_lora(plain)
    write(folder / "vision-lora" if inside else tmp_path, lora, use_rslora=rslora)
    inputs = adapter.batch(QUESTION).inputs
    expected = logits_beside(plain, lora, scale, inputs)
    with torch.no_grad():
        before = plain(**inputs).logits
        merged = load(folder, "vision-lora" if inside else str(tmp_path))[1](**inputs).logits
    assert not torch.allclose(before, expected, atol=1.0)
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-3)  # float32, one product in another order


def refused(message: str) -> Any:
    """Each refusal says what was found, and then what to do."""
    whole = rf"(?s)^the adapter '.*{message}.*(?<!\.)\. Look at teacher\.adapters; or merge it with the library that "
    return pytest.raises(CheckpointError, match=whole)


def test_adapters_that_cannot_be_merged_are_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("phi4_multimodal")
    lora = make_lora(load(folder)[1])
    a, b = lora[ADAPTED[0]]
    for options, message in (
        ({"use_dora": True}, "is LORA with use_dora; plain LoRA can be merged here"),
        ({"peft_type": "IA3"}, "is IA3; plain LoRA can be merged here"),
        ({"r": 0, "lora_alpha": "6"}, r"has r = 0, lora_alpha = '6' in its adapter_config\.json; expected numbers"),
        ({"r": None}, r"has r = None in its adapter_config\.json; expected numbers above 0"),
    ):
        write(tmp_path, lora, **options)
        with refused(message):
            load(folder, str(tmp_path))
    for pairs, message in (
        ({"model.layers.7.self_attn.qkv_proj": (a, b)}, r"adapts model\.layers\.7.*has no such module; expected"),
        ({"model.norm": (a, b)}, "has a Phi4MultimodalRMSNorm there; expected a linear layer"),
        ({ADAPTED[1]: (a[:, :8], b)}, r"has B \(64, 3\) and A \(3, 8\) for model\.layers\.1\.mlp\.gate_up_proj, whose"),
    ):
        write(tmp_path, pairs)
        with refused(message):
            load(folder, str(tmp_path))
    save_file({f"base_model.model.{ADAPTED[0]}.lora_A.weight": a.clone()}, tmp_path / "adapter_model.safetensors")
    with refused(r"has only one of A and B for model\.layers\.0\.self_attn\.qkv_proj"):
        load(folder, str(tmp_path))
    save_file({"base_model.model.lm_head.weight": a.clone()}, tmp_path / "adapter_model.safetensors")
    with refused(r"holds base_model\.model\.lm_head\.weight; expected names base_model"):
        load(folder, str(tmp_path))
    save_file({}, tmp_path / "adapter_model.safetensors")
    with refused("holds no tensor"):
        load(folder, str(tmp_path))
    with refused(r"speech-lora' of .* cannot be read: OSError"):
        load(folder, "speech-lora")
