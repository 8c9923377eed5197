"""Students with a window decode with a cache as without one, and are the same after they were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from linearize.plugin.components import read_options
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols import AttentionSite
from linearize.student.convert import convert
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student, save_student
from linearize.testing.numbers import ROUNDING

MIXERS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": 3, "sinks": 1},
    "swa_linear": {"window": 4, "linear": {"type": "gated_delta_net"}},
}


@pytest.fixture(params=list(MIXERS))
def student(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None, pad_token_id=0, initializer_range=0.25,
    )  # fmt: skip
    sites = [
        AttentionSite(
            index=layer, path=f"model.layers.{layer}.self_attn", tower="language", layer=layer, cache_index=layer,
            hidden_size=32, num_heads=4, num_key_value_heads=2, key_dim=8, value_dim=8,
        )
        for layer in range(2)
    ]  # fmt: skip
    plugins = Plugins.discover()
    spec = plugins.registry.get(MixerSpec, request.param)
    mixers = {}
    for site in sites:
        mixer: Any = build_mixer(spec, read_options(spec.config_class(), MIXERS[request.param], plugins), site)
        mixer.initialize("scratch", torch.Generator().manual_seed(site.index))
        mixers[site.index] = mixer
    model = LlamaForCausalLM(config).eval()
    convert(model, sites, mixers)
    return model


@pytest.fixture
def prompts() -> dict[str, torch.Tensor]:
    """Two, the first with four pads before it."""
    ids = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))
    ids[0, :4] = 0
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}])
def test_a_left_padded_batch_decodes_with_a_cache_as_without(
    student: Any, prompts: dict[str, torch.Tensor], options: dict[str, int]
) -> None:
    cached, whole = (
        student.generate(**prompts, **options, do_sample=False, max_new_tokens=9, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)
    assert len(set(cached[:, 11:].flatten().tolist())) > 4


@torch.no_grad()
def test_a_saved_student_has_the_same_options_and_logits(
    student: Any, prompts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_student(student, tmp_path / "student")
    loaded = load_student(tmp_path / "student")
    torch.testing.assert_close(loaded(**prompts).logits, student(**prompts).logits, **ROUNDING)
    mixer, again = student.model.layers[1].self_attn.mixer, loaded.model.layers[1].self_attn.mixer
    assert again.config == mixer.config
    plugins = {"sliding_window": ["sliding_window"], "swa_linear": ["sliding_window", "delta"]}
    entry = loaded.config.linearize["mixers"][0]
    assert [plugin.split()[0] for plugin in entry["plugin"].split(", ")] == plugins[entry["type"]]
