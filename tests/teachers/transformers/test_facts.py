"""What a site says of its attention before a weight is read, against the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.facts import with_facts
from linearize_transformers.models import empty_model
from linearize_transformers.sites import find_sites
from linearize_transformers.support import SLIDING, TEXT
from transformers import CONFIG_MAPPING
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from linearize.errors import CheckpointError
from linearize.protocols import AttentionSite


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


MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
HYBRID = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "num_hidden_layers": 2,
          "layer_types": ["mamba", "attention"], "num_local_experts": 0}  # fmt: skip


def text_sites(model_type: str, **options: Any) -> list[AttentionSite]:
    config = CONFIG_MAPPING[model_type](**options)
    model, text_config = empty_model(config), config.get_text_config(decoder=True)
    return [with_facts(model.get_submodule(one.site.path), one, text_config).site for one in find_sites(model)]


def test_pairs_turn_as_the_texts_do_whatever_the_vision_tower_does() -> None:
    text = {"model_type": "ernie4_5_vl_moe_text", **TEXT, "rope_parameters": MROPE}
    sites = text_sites("ernie4_5_vl_moe", text_config=text)
    assert {site.rope_style for site in sites} == {"interleaved"}


def test_layers_of_one_class_have_the_window_and_the_rotary_embedding_that_each_uses() -> None:
    sites = text_sites("exaone4", **TEXT | SLIDING)
    assert [(site.window, site.has_rope) for site in sites] == [(6, True), (None, False)]


@pytest.mark.parametrize(("kind", "has_rope"), [(None, False), ("rope", True)])
def test_a_site_whose_decoder_passes_no_positions_has_no_rope(kind: str | None, has_rope: bool) -> None:
    (site,) = text_sites("granitemoehybrid", **TEXT | HYBRID, position_embedding_type=kind)
    assert site.has_rope == has_rope


@pytest.mark.parametrize(("model_type", "clip"), [("olmo", 0.5), ("olmo", None), ("olmoe", 8.0)])
def test_what_queries_keys_and_values_are_clamped_to_is_found(model_type: str, clip: float | None) -> None:
    for site in text_sites(model_type, **TEXT | {"num_key_value_heads": 4, "clip_qkv": clip}):
        assert site.qkv_clip == (None if clip is None else pytest.approx(clip))


def test_a_factor_on_queries_before_the_scores_is_a_part_of_the_scale() -> None:
    (site, _) = text_sites("opt", **TEXT, ffn_dim=48, word_embed_proj_dim=32)
    assert (site.scale, site.has_rope) == (None, False)


def test_an_attention_that_does_what_no_site_can_say_is_refused() -> None:
    with pytest.raises(CheckpointError, match="queries and keys are changed otherwise than"):
        text_sites("nanochat", **TEXT)  # it turns against the direction of the others
