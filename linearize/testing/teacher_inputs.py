"""What the checks of a teacher begin with: pictures, a loaded model, its logits and ids.

Letters: B batch, T tokens, X vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from linearize.files.aligned import align_tensors
from linearize.protocols import Batch, TeacherAdapter


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Stripes whose colour changes with the seed."""
    image = Image.new("RGB", (width, height))
    image.putdata([((x * 7 * seed) % 256, (y * 11) % 256, (x + y) * seed % 256)
                   for y in range(height) for x in range(width)])  # fmt: skip
    return image


def load(adapter: TeacherAdapter) -> Any:
    """The model in float32 on the CPU, its tensors where a run puts them."""
    model = adapter.load(dtype=torch.float32, device="cpu")
    align_tensors(model)
    return model


def load_frozen(adapter: TeacherAdapter) -> Any:
    """As conversion leaves it: torch rounds some products otherwise when a weight needs gradients, no_grad or not."""
    return load(adapter).requires_grad_(False)


@torch.no_grad()
def logits_of(model: Any, batch: Batch) -> Tensor:
    """[B, T, X] of a whole batch, without a cache; all of them finite."""
    logits_BTX: Tensor = model(**batch.inputs, use_cache=False).logits
    assert bool(torch.isfinite(logits_BTX).all()), "there are logits that are not finite"
    return logits_BTX


def ids_of(batch: Batch, row: int) -> list[int]:
    """A row's tokens without its pads."""
    ids: list[int] = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist()
    return ids
