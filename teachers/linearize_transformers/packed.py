"""Several samples in one row of a model's input: which models take that, and how their pictures and positions go on.

Letters: A axes of a position, B rows, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from linearize.data.packing import end_to_end
from linearize.protocols import Batch
from linearize_transformers.prefix import PREFIX_MODELS
from linearize_transformers.support import OWN_MASK

BY_ROW: Mapping[str, int] = {"pixel_values": 1, "pixel_attention_mask": 1}
"""Inputs with the pictures of a row on an axis of their own, behind that of the rows."""

PICTURES: Mapping[str, Mapping[str, int]] = {
    "qwen2_vl": {}, "qwen2_5_vl": {}, "qwen3_vl": {}, "glm4v": {}, "internvl": {}, "llava": {}, "mistral3": {},
    "smolvlm": BY_ROW, "idefics3": BY_ROW,
}  # fmt: skip
"""Models whose pictures go on from one sample to the next: input -> its axis of pictures, 0 where it is not named."""


def packing_obstacle(config: Any, *, takes_images: bool) -> str:
    """Why samples cannot share a row of a model; "" where they can."""
    name = config.model_type
    if name in PREFIX_MODELS:
        return f"a {name} reads the beginning of a row in both directions"
    if name in OWN_MASK:
        return f"the attention of a {name} has a mask of its own, which does not part samples"
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return f"a {name} has recurrent layers of its own, which go on from one sample to the next"
    if takes_images and name not in PICTURES:
        return f"it is not known how the pictures of several samples go into one row of a {name}"
    return ""


def pack(model: Any, batches: Sequence[Batch], width: int, *, pad_token_id: int) -> Batch:
    """Batches of one sample each as one row of ``width`` tokens.

    Args:
        model: of the checkpoint; its weights are not read.
    """
    along = PICTURES.get(model.config.model_type, {})
    positions = _positions_with_axes(model, batches)
    return end_to_end(batches, width, pad_token_id=pad_token_id, positions=positions, along=along)


def _positions_with_axes(model: Any, batches: Sequence[Batch]) -> list[Tensor] | None:
    """[1 + A, 1, T] for each batch: the place in the text, then those in its pictures; None for models without axes."""
    of_model = getattr(model.base_model, "get_rope_index", None)
    if of_model is None:
        return None
    names = inspect.signature(of_model).parameters
    found = []
    for batch in batches:
        ids_BT = batch.inputs["input_ids"]
        given = {name: value for name, value in batch.inputs.items() if name in names}
        if "mm_token_type_ids" in names:
            given.setdefault("mm_token_type_ids", torch.zeros_like(ids_BT, dtype=torch.int32))
        axes_ABT = of_model(**given)[0].to(ids_BT.device)
        text = torch.arange(ids_BT.shape[1])[None, None]
        found.append(torch.cat([text, axes_ABT.to(text.dtype)]))
    return found
