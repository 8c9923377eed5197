"""Reads and writes HoVLE checkpoints in the published layout: config.json beside one or several safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from linearize.errors import CheckpointError
from linearize.files.owned_folder import give_default_modes
from linearize_hovle.config_file import INDEX, WEIGHTS, read_config, read_json
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from linearize_hovle.published import to_our_names, to_published_names
from linearize_hovle.published_config import config_to_published

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def read_tensors(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Every tensor of a folder, floating ones cast to ``dtype`` one by one, so that no second copy of the model exists.

    Raises:
        CheckpointError: no weights, a missing or damaged shard, or a shard without a tensor that the index places in
            it.
    """
    index_file, single = folder / INDEX, folder / WEIGHTS
    if index_file.is_file():
        placed = read_json(index_file).get("weight_map")
        if not isinstance(placed, dict):
            raise CheckpointError(f"{index_file} has no weight_map; copy it again from its source")
        shards = {
            name: {key for key, shard in placed.items() if shard == name} for name in sorted(set(placed.values()))
        }
    elif single.is_file():
        shards = {WEIGHTS: set()}
    else:
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; expected weights in safetensors files")
    state: dict[str, Tensor] = {}
    for name, keys in shards.items():
        state |= _read_shard(folder / name, keys, dtype, device)
    return state


def _read_shard(file: Path, keys: set[str], dtype: torch.dtype | None, device: torch.device | str) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(
            f"{file} does not exist, but the index beside it places {len(keys)} tensors there; fetch the missing shard"
        )
    try:
        with safe_open(file, framework="pt") as shard:
            found = set(shard.keys())
            if absent := sorted(keys - found):
                raise CheckpointError(
                    f"{file} lacks {', '.join(absent[:8])}, which the index places there; fetch the shard again"
                )
            state = {}
            for key in sorted(found):
                tensor = shard.get_tensor(key)
                kind = dtype if dtype is not None and tensor.dtype in PLAIN else tensor.dtype
                state[key] = tensor.to(device=device, dtype=kind)
            return state
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({error}); fetch it again") from error


def model_from_tensors(
    config: HovleConfig, state: Mapping[str, Tensor], *, without_attention: Collection[int] = ()
) -> HovleForConditionalGeneration:
    """A model in eval mode that holds the very tensors of ``state`` (``wqkv`` split).

    Args:
        without_attention: indices of sites whose attention is not in ``state``; their projections are zero.

    Raises:
        CheckpointError: keys are missing or surplus, a shape does not fit the configuration, or weights are quantised.
    """
    tensors = to_our_names(config, state, without_attention)
    with torch.device("meta"):
        model = HovleForConditionalGeneration(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(shapes[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError(
            f"shapes do not fit config.json: {'; '.join(wrong[:4])}; config.json and weights must belong together"
        )
    if coded := sorted(name for name, tensor in tensors.items() if tensor.dtype not in PLAIN):
        raise CheckpointError(
            f"{len(coded)} tensors are {tensors[coded[0]].dtype} ({', '.join(coded[:4])}), as in a quantised "
            "checkpoint; plain weights in float32, bfloat16 or float16 are needed: take the one that it was made from"
        )
    like = tensors["lm_head.weight"]
    zeros = {name: like.new_zeros(shape) for name, shape in shapes.items() if name not in tensors}
    model.load_state_dict(tensors | zeros, assign=True)
    model.config.dtype = like.dtype
    return model.eval()


def load_model(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> HovleForConditionalGeneration:
    """The model of a folder, in eval mode; ``dtype`` None keeps the stored one."""
    config = read_config(folder)
    try:
        model = model_from_tensors(config, read_tensors(folder, dtype, device))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config.update(**_stated(read_json(folder / "generation_config.json")))
    return model


def _stated(generation: dict[str, Any]) -> dict[str, Any]:
    """What a generation_config.json really says, without its provenance."""
    return {
        key: value for key, value in generation.items() if not key.startswith("_") and key != "transformers_version"
    }


def published_state(
    model: HovleForConditionalGeneration, *, without_attention: Collection[int] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a model in the published layout."""
    config = config_to_published(model.config)
    # Newer writers name the field "dtype"; a file that names none leaves it to the tensors.
    for field in ("torch_dtype", "dtype"):
        if field in config or (model.config.published is None and field == "torch_dtype"):
            config[field] = str(model.lm_head.weight.dtype).removeprefix("torch.")
    return config, to_published_names(model.config, model.state_dict(), without_attention)


def save_model(model: HovleForConditionalGeneration, folder: Path, *, max_shard_size: int | str = "5GB") -> None:
    """Writes a model in the published layout, as one file or as shards with an index."""
    config, state = published_state(model)
    folder.mkdir(parents=True, exist_ok=True)
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: state[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        _write_json(folder / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})
    _write_json(folder / "config.json", config)
    give_default_modes([folder / name for name in plan.filename_to_tensors], like=folder / "config.json")
    generation: GenerationConfig = model.generation_config
    _write_json(folder / "generation_config.json", json.loads(generation.to_json_string(use_diff=True)))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
