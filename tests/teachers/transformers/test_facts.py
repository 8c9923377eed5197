"""What a site says of its attention before a weight is read, against the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel


def make_adapter(folder: Path, attention: str) -> TransformersAdapter:
    return TransformersAdapter(TransformersTeacherConfig(checkpoint=str(folder), attention=attention))


NO_SDPA = pytest.mark.skipif(
    not Gemma2PreTrainedModel._supports_sdpa, reason="this transformers refuses it for Gemma 2"
)


@pytest.mark.parametrize(
    ("attention", "softcap"),
    [pytest.param("sdpa", None, marks=NO_SDPA), ("eager", 50.0), ("flash_attention_2", 50.0)],
)
def test_what_computes_the_attention_decides_on_a_soft_cap(
    checkpoint: Callable[[str], Path], attention: str, softcap: float | None
) -> None:
    """And need not be installed where a recipe is only checked."""
    adapter = make_adapter(checkpoint("gemma2"), attention)
    assert [site.softcap for site in adapter.sites()] == [softcap] * 2


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_sites_and_weights_agree_on_the_soft_cap(checkpoint: Callable[[str], Path], attention: str) -> None:
    adapter = make_adapter(checkpoint("gemma2"), attention)
    sites, model = adapter.sites(), adapter.load(dtype=torch.float32, device="cpu")
    assert [adapter.weights(model, site).softcap for site in sites] == [site.softcap for site in sites]
