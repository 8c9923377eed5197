"""Batches for Mllama, whose tokens read an image through cross-attention layers and not among themselves.

Letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.mllama import processing_mllama


def process_mllama(
    processor: Any,
    texts: Sequence[str],
    images: Sequence[Sequence[Any]],
    input_names: Collection[str],
    padding_side: str,
) -> dict[str, Tensor]:
    """What its processor makes of a batch, for rows without an image beside others too.

    Before transformers 5.23 the processor's own call refuses such batches.
    """
    del input_names
    texts = [
        processing_mllama.build_string_from_input(text, processor.bos_token, processor.image_token) for text in texts
    ]
    outputs: dict[str, Tensor] = dict(
        processor.tokenizer(
            texts, padding=True, padding_side=padding_side, add_special_tokens=False, return_tensors="pt"
        )
    )
    if any(images):
        features = dict(processor.image_processor([list(row) for row in images], return_tensors="pt"))
        ids_BT = outputs["input_ids"].tolist()
        read = processing_mllama.convert_sparse_cross_attention_mask_to_dense(
            [processing_mllama.get_cross_attention_token_mask(ids, processor.image_token_id) for ids in ids_BT],
            num_tiles=features.pop("num_tiles"),
            max_num_tiles=processor.image_processor.max_image_tiles,
            length=len(ids_BT[0]),
        )
        outputs |= features | {"cross_attention_mask": torch.from_numpy(read)}
    return outputs
