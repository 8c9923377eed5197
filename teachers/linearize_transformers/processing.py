"""What processors make of texts and images; and a way of our own for a class that cannot take conversations.

Letters: C channels, H and W pixels of height and width, P patches, X numbers of one patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from linearize_transformers.mllama import process_mllama

CALLED_AS: dict[str, type] = {
    "ChameleonProcessor": ProcessorMixin,  # its own call writes a separator behind the last answer
}
"""Processor class -> the base whose call takes the template's text as it is, where the class's own adds to it."""


def process(
    processor: Any,
    texts: list[str],
    images: Sequence[Sequence[Any]],
    *,
    input_names: Collection[str],
    padding_side: str,
    **options: Any,
) -> dict[str, Tensor]:
    """Model inputs of a batch.

    Args:
        processor: a checkpoint's processor, or the tokenizer of a text model.
        images: of each text, in the order of its marks.
        input_names: what the model's forward takes.
        options: the tokenizer's, such as ``add_special_tokens``.
    """
    name = type(processor).__name__
    if name in OWN_WAYS:
        return OWN_WAYS[name](processor, texts, images, input_names, padding_side)
    if any(images):
        options["images"] = [list(row) for row in images]
    call = CALLED_AS.get(name, type(processor)).__call__
    return dict(call(processor, text=texts, padding=True, padding_side=padding_side, return_tensors="pt", **options))


def process_fuyu(
    processor: Any, texts: list[str], images: Sequence[Sequence[Any]], input_names: Collection[str], padding_side: str
) -> dict[str, Tensor]:
    """Fuyu's pieces of images where the marks are, line by line as its own processor writes them.

    That one knows a single question: it writes one image before the text, the mark of an answer's beginning behind the
    text, and pads on the left; and up to transformers 5.23 it cannot cut the images of its own Pillow backend.

    Patches come as [rows with images, P, X] where each such row has as many, so that what repeats entries of the first
    axis, as beam search does before transformers 5.23, keeps them together; else as [all patches, X].
    """
    rows: list[dict[str, list[int]]] = []
    patches: list[Tensor] = []
    for text, pictures in zip(texts, images, strict=True):
        pieces = text.split(processor.image_token)
        if len(pieces) != len(pictures) + 1:
            raise ValueError(f"{len(pieces) - 1} marks {processor.image_token} for {len(pictures)} images")
        ids: list[int] = []
        of_row: list[Tensor] = []
        for number, piece in enumerate(pieces):
            if number:
                block, patches_PX = _fuyu_image(processor, pictures[number - 1])
                ids += block
                of_row.append(patches_PX)
            if piece:
                ids += processor.tokenizer(piece, add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": ids})
        if of_row:
            patches.append(torch.cat(of_row))
    outputs = dict(processor.tokenizer.pad(rows, padding=True, padding_side=padding_side, return_tensors="pt"))
    if patches:
        as_many = len({len(one) for one in patches}) == 1
        name = "pixel_values" if "pixel_values" in input_names else "image_patches"  # before transformers 5.23
        outputs[name] = torch.stack(patches) if as_many else torch.cat(patches)
    return outputs


def _fuyu_image(processor: Any, image: Any) -> tuple[list[int], Tensor]:
    """Ids of one image, a new line behind each row of patches, and the patches [P, X]."""
    features = processor.image_processor([[image]], return_tensors="pt")
    pixels_CHW = features["images"][0, 0]
    size = processor.image_processor.patch_size
    sides = (int(size["height"]), int(size["width"]))
    filled = (int(features["image_unpadded_heights"][0, 0]), int(features["image_unpadded_widths"][0, 0]))
    num_rows, num_columns = (
        min(whole // side, math.ceil(part / side))
        for whole, side, part in zip(pixels_CHW.shape[1:], sides, filled, strict=True)
    )
    cut_CHW = pixels_CHW[:, : num_rows * sides[0], : num_columns * sides[1]]
    patches_PX = (
        cut_CHW.unflatten(2, (num_columns, sides[1]))
        .unflatten(1, (num_rows, sides[0]))
        .permute(1, 3, 2, 4, 0)
        .reshape(num_rows * num_columns, -1)
    )
    line = [processor.image_token_id] * num_columns + [processor.image_newline_id]
    return line * num_rows, patches_PX


OWN_WAYS: dict[str, Callable[[Any, list[str], Sequence[Sequence[Any]], Collection[str], str], dict[str, Tensor]]] = {
    "FuyuProcessor": process_fuyu,
    "MllamaProcessor": process_mllama,
}
"""Processor class -> what is called in its place."""
