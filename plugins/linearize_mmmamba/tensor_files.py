"""Tensors of a checkpoint folder: one safetensors file, or shards with an index, as the hub's libraries name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from linearize.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        CheckpointError: the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); copy it again from its source") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a JSON {type(content).__name__}; expected an object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with sorted keys."""
    file.write_text(json.dumps(content, indent=4, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, by name, in its stored dtype.

    Raises:
        CheckpointError: neither a single file nor an index is there, a file is damaged, or a shard lacks a tensor that
            the index promises.
    """
    if (folder / INDEX).is_file():
        placed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(placed, dict):
            raise CheckpointError(f"{folder / INDEX} has no weight_map; copy it again from its source")
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(placed.values())):
            tensors |= _read_file(folder / name)
        lost = sorted(placed.keys() - tensors.keys())
        if lost:
            raise CheckpointError(
                f"{folder}: the index promises {', '.join(lost[:4])}, which no shard holds ({len(lost)} in all)"
            )
        return tensors
    return _read_file(folder / SINGLE)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """Writes one file, or shards with an index; ``max_shard_size`` in bytes, or text such as "5GB"."""
    plan = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: tensors[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json(folder / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _read_file(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; a checkpoint holds {SINGLE}, or shards with {INDEX}")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({error}); fetch it again") from error
