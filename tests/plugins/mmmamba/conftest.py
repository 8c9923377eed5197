"""Tiny students of a random HoVLE, converted but not trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from linearize_hovle.adapter import attention_sites
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from torch import nn

from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student.convert import convert, set_linear
from linearize.student.mixers import build_mixer

NUM_SITES = 5
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip

MakeStudent = Callable[..., nn.Module]


@pytest.fixture
def make_student() -> MakeStudent:
    """Gives ``make(linear, **mixer_options)``: 2 + 3 layers, a mixer at every site, those in ``linear`` run it."""

    def make(linear: Collection[int] = range(NUM_SITES), **options: Any) -> nn.Module:
        torch.manual_seed(0)
        config = HovleConfig(
            embedding_config={**TOWER, "num_hidden_layers": 2, "image_size": 28, "image_token_id": 39},
            text_config={**TOWER, "num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            image_size=28,
        )
        model: nn.Module = HovleForConditionalGeneration(config).eval()
        spec = Plugins.discover().registry.get(MixerSpec, "mamba2")
        sites = attention_sites(config)
        mixers = {site.index: build_mixer(spec, spec.config_class().model_validate(options), site) for site in sites}
        for mixer in mixers.values():
            for parameter in mixer.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        convert(model, sites, mixers)
        set_linear(model, linear)
        return model

    return make
