"""Processors that transformers has for torchvision alone, run without it.

A CPU installation of these tests lacks torchvision. Of all its functions these processors call four, which are written
out here; everything else, sizes, tiles, patches and text, is transformers' own code.
"""

from __future__ import annotations

import enum
import importlib
import sys
import types
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor
from transformers import image_processing_backends as backends


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def resize(
    image: Tensor,
    size: Any,
    interpolation: InterpolationMode | int = InterpolationMode.BILINEAR,
    max_size: int | None = None,
    antialias: bool = True,
) -> Tensor:
    """[..., C, H, W] to another height and width; in float32, and back to the dtype of the pixels.

    Args:
        interpolation: or Pillow's number of it.
    """
    assert max_size is None
    if isinstance(interpolation, int):
        interpolation = InterpolationMode[Image.Resampling(interpolation).name]
    pixels = image.reshape(-1, *image.shape[-3:]).float()
    pixels = F.interpolate(pixels, tuple(size), mode=interpolation.value, antialias=antialias, align_corners=False)
    if not image.is_floating_point():
        pixels = pixels.round().clamp(0, 255)
    return pixels.reshape(*image.shape[:-2], *pixels.shape[-2:]).to(image.dtype)


def normalize(image: Tensor, mean: Any, std: Any, inplace: bool = False) -> Tensor:
    del inplace
    mean, std = (torch.as_tensor(one, dtype=image.dtype).view(-1, 1, 1) for one in (mean, std))
    return (image - mean) / std


def pad(image: Tensor, padding: Any, fill: Any = 0, padding_mode: str | None = "constant") -> Tensor:
    """With one number, or the same number for each channel."""
    left, top, right, bottom = padding
    values = set(fill) if isinstance(fill, list) else {fill or 0}
    assert len(values) == 1
    return F.pad(image, (left, right, top, bottom), mode=padding_mode or "constant", value=values.pop())


def pil_to_tensor(image: Image.Image) -> Tensor:
    """[C, H, W]; transformers before 5.23 calls it."""
    return torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def bring(package: str, *modules: str) -> None:
    """Makes the classes of ``transformers.models.<package>.<module>`` what the library finds under their names."""
    functional: Any = types.ModuleType("torchvision.transforms.v2.functional")
    functional.InterpolationMode = InterpolationMode
    functional.resize, functional.normalize, functional.pad = resize, normalize, pad
    functional.pil_to_tensor = pil_to_tensor
    v2: Any = types.ModuleType("torchvision.transforms.v2")
    v2.functional = functional
    stand_ins = {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.transforms": types.ModuleType("torchvision.transforms"),
        "torchvision.transforms.v2": v2,
        "torchvision.transforms.v2.functional": functional,
    }
    backends.tvF = functional
    backends.pil_torch_interpolation_mapping = {Image.Resampling[mode.name]: mode for mode in InterpolationMode}
    owner = importlib.import_module(f"transformers.models.{package}")
    sys.modules.update(stand_ins)
    try:
        for name in modules:
            module = importlib.import_module(f"transformers.models.{package}.{name}")
            for exported in module.__all__:
                for place in (owner, transformers):
                    setattr(place, exported, getattr(module, exported))
    finally:  # the stand-ins alone: whatever else was imported meanwhile must not be imported a second time
        for name in stand_ins:
            del sys.modules[name]
