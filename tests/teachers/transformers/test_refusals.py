"""What cannot be converted is refused by its configuration alone, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_transformers import models
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.models import empty_model
from linearize_transformers.sites import find_sites
from linearize_transformers.support import FAMILIES, TEXT, caveats
from torch import nn
from transformers import CONFIG_MAPPING, BertConfig, T5Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel
from transformers.models.mllama.modeling_mllama import MllamaPreTrainedModel

from linearize.errors import CheckpointError
from linearize.student.state import CACHE_NAME

NEXT_STEP = (
    r"Take another checkpoint .*, or write a teacher plug-in for this one: `linearize new teacher NAME` begins it, "
    r"docs/write_a_teacher\.md goes on\."
)


def sites(model_type: str, **changes: Any) -> Any:
    return find_sites(empty_model(CONFIG_MAPPING[model_type](**TEXT | changes)))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("deepseek_v3", {}, r"layers\.0\.self_attn \(DeepseekV3Attention\) cannot become.*latent attention \(MLA\)"),
        ("gpt_oss", {}, "attention sinks"),
        ("mamba2", {"num_heads": 8, "state_size": 8}, "no layers with softmax attention"),
        ("qwen3_next", {}, "none of the 2 layers of this 'qwen3_next' model has softmax self-attention"),
        ("bloom", {}, "no layers with softmax attention under one of the names self_attn, attention, attn"),
        ("gemma4_text", {"num_kv_shared_layers": 1, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
         r"layers\.2\.self_attn.*keys and values that later layers read instead of their own"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_converted_say_why(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{message}.*{NEXT_STEP}"):
        sites(model_type, **changes)


class Otherwise(nn.Module):
    """An attention that is called otherwise than those of transformers."""

    def forward(self, x: Any) -> Any:
        return x


class DeltaRule(nn.Module):
    """Linear already, as Kimi Linear's layers have it under the name of an attention."""

    def forward(self, hidden_states: Any, cache: Any = None, attention_mask: Any = None) -> Any:
        return hidden_states, None


def without_a_query(model: Any) -> None:
    del model.model.layers[1].self_attn.q_proj


def with_an_indexer(model: Any) -> None:
    model.model.layers[1].self_attn.indexer = nn.Linear(2, 2)


def with_other_arguments(model: Any) -> None:
    model.model.layers[1].self_attn = Otherwise()


def with_a_layer_of_another_kind(model: Any) -> None:
    model.model.layers[1] = nn.Sequential(nn.Linear(2, 2))


def with_a_mixer_beside(model: Any) -> None:
    """As in Falcon-H1."""
    model.model.layers[1].mamba = nn.Linear(2, 2)


def with_two_stacks(model: Any) -> None:
    model.model.more = nn.ModuleList([model.model.layers[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_query, r"layers\.1\.self_attn \(LlamaAttention\) cannot become.*its children are k_proj, v_proj, "
         "o_proj, while the known forms are q_proj, k_proj, v_proj and o_proj"),
        (with_an_indexer, r"layers\.1.*a learned choice of keys \(sparse attention\)"),
        (with_other_arguments, r"layers\.1.*its forward takes x; expected hidden_states and CACHE"),
        (with_a_layer_of_another_kind, r"layers\.1 is a Sequential with 0; expected an attention under one of the"),
        (with_a_mixer_beside, r"layers\.1 \(LlamaDecoderLayer\) has both 'self_attn' and 'mamba', which work side by"),
        (with_two_stacks, r"\(model, a LlamaModel\) has 2 lists of layers, layers, more; expected one"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named_with_what_is_expected(change: Callable[[Any], None], message: str) -> None:
    model = empty_model(CONFIG_MAPPING["llama"](**TEXT))
    change(model)
    with pytest.raises(CheckpointError, match=rf"{message.replace('CACHE', CACHE_NAME)}.*{NEXT_STEP}"):
        find_sites(model)


def test_a_model_without_a_text_decoder_is_refused() -> None:
    class Bare(nn.Module):
        config = CONFIG_MAPPING["llama"](**TEXT)

    with pytest.raises(CheckpointError, match=rf"Bare has no get_decoder\(\).*cannot be found\. {NEXT_STEP}"):
        find_sites(Bare())


def test_an_attention_that_is_linear_already_is_no_site_whatever_its_name() -> None:
    model = empty_model(CONFIG_MAPPING["llama"](**TEXT))
    model.model.layers[0].self_attn = DeltaRule()
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn \(DeltaRule\) cannot become a linear site"):
        find_sites(model)
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert [one.site.layer for one in find_sites(model)] == [1]


def test_an_attention_that_turns_queries_is_a_site_whatever_its_layer_is_called() -> None:
    model = empty_model(CONFIG_MAPPING["llama"](**TEXT))
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert [one.site.layer for one in find_sites(model)] == [0, 1]


def test_keys_that_later_layers_read_are_named_as_the_reason() -> None:
    model = empty_model(CONFIG_MAPPING["llama"](**TEXT))
    model.model.layers[1].self_attn.is_kv_shared_layer = True
    with pytest.raises(CheckpointError, match=r"layers\.1.*cross-layer KV sharing"):
        find_sites(model)


def test_a_tensor_that_nobody_knows_is_not_ignored() -> None:
    model = empty_model(CONFIG_MAPPING["llama"](**TEXT))
    model.model.layers[0].self_attn.temperature = nn.Parameter(torch.ones(4))
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn.*it has temperature, and what those do"):
        find_sites(model)


def test_a_gate_inside_the_query_projection_is_not_taken_for_heads() -> None:
    (found,) = sites("qwen3_next", layer_types=["linear_attention", "full_attention"])
    assert (found.site.num_heads, found.site.key_dim, found.form.name) == (4, 8, "q with gate per head, k, v, o")
    (caveat,) = caveats(CONFIG_MAPPING["qwen3_5_text"](), [found])
    assert "'qwen3_5_text': its attention multiplies its output by a sigmoid gate of its input" in caveat


def test_projections_that_do_not_fit_the_heads_are_refused() -> None:
    model = empty_model(CONFIG_MAPPING["llama"](**TEXT))
    model.model.layers[1].self_attn.q_proj.out_features = 64
    with pytest.raises(
        CheckpointError, match="do not have the sizes of 8 query and 2 key-value heads of widths 8 and 8"
    ):
        find_sites(model)


@pytest.mark.parametrize("text_type", ["gemma", "gemma2"])
def test_a_bidirectional_prefix_is_no_reason_to_refuse_and_bidirectional_attention_is(text_type: str) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CONFIG_MAPPING["paligemma"](
        text_config={"model_type": text_type, **TEXT}, vision_config={"model_type": "siglip_vision_model", **vision}
    )
    assert config.text_config.use_bidirectional_attention
    assert len(find_sites(empty_model(config))) == 2
    (caveat,) = caveats(config, [])
    assert "reads the prompt up to its first answer, images and question, in both directions" in caveat
    with pytest.raises(CheckpointError, match=r"it is bidirectional \(is_causal is False\), and a recurrence reads"):
        sites(text_type, use_bidirectional_attention=True)


def test_only_the_softmax_sites_of_a_hybrid_are_offered() -> None:
    found = sites("lfm2", num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "full_attention"])
    assert [(one.site.index, one.site.layer, one.site.cache_index) for one in found] == [(0, 1, 1), (1, 3, 3)]
    assert {one.site.output_projection for one in found} == {"out_proj"}


def test_layers_that_read_an_image_are_no_sites() -> None:
    (mllama,) = (family for family in FAMILIES if family.model_type == "mllama")
    config = CONFIG_MAPPING["mllama"](**mllama.config)
    assert config.text_config.cross_attention_layers == [1]
    found = find_sites(empty_model(config))
    assert [(one.site.index, one.site.layer, one.site.cache_index) for one in found] == [
        (0, 0, 0),
        (1, 2, 2),
        (2, 3, 3),
    ]
    (caveat,) = caveats(config, [])
    assert "its cross-attention layers are no sites and stay as they are" in caveat


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5Config(num_layers=1, d_model=16), "'t5' is an encoder-decoder model"),
        (BertConfig(num_hidden_layers=1, is_decoder=False, model_type="x"), "no vision-language model and no causal"),
    ],
)
def test_models_without_a_decoder_of_their_own_are_refused(config: Any, message: str) -> None:
    if isinstance(config, BertConfig):
        config.model_type = "no_such_type"
    with pytest.raises(CheckpointError, match=message):
        empty_model(config)


def test_a_model_that_transformers_loads_as_another_type_is_refused_before_it_is_trained() -> None:
    """As InternLM 3, whose class is Llama's: its student could not be saved."""
    config = CONFIG_MAPPING["llama"](**TEXT)
    config.model_type = "mistral"
    with pytest.raises(
        CheckpointError, match=r"loads 'mistral' as a LlamaForCausalLM.*of 'llama'.*take a checkpoint of"
    ):
        empty_model(config)


def test_attention_that_reads_images_in_both_directions_is_told() -> None:
    (caveat,) = caveats(CONFIG_MAPPING["gemma3"](), [])
    assert "reads the tokens of an image in both directions" in caveat
    assert caveats(CONFIG_MAPPING["llava"](), []) == []


@pytest.mark.skipif(Gemma2PreTrainedModel._supports_sdpa, reason="this transformers leaves the soft cap out instead")
@pytest.mark.parametrize("name", ["gemma2", "paligemma"])
def test_an_attention_that_the_model_cannot_compute_is_refused_before_it_is_loaded(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    options: dict[str, Any] = {"checkpoint": str(checkpoint(name))}
    with pytest.raises(CheckpointError, match=r"teacher\.attention is 'sdpa'.*Gemma2Model.*set teacher\.attention to"):
        TransformersAdapter(TransformersTeacherConfig(**options, attention="sdpa")).sites()
    for attention in ("auto", "eager"):
        assert TransformersAdapter(TransformersTeacherConfig(**options, attention=attention)).sites()


@pytest.mark.skipif(MllamaPreTrainedModel._supports_flash_attn, reason="this transformers offers it for Mllama, too")
def test_flash_attention_is_refused_where_a_part_of_the_model_has_none(checkpoint: Callable[[str], Path]) -> None:
    """Whether its package is installed or not."""
    options: dict[str, Any] = {"attention": "flash_attention_2"}
    with pytest.raises(CheckpointError, match=r"'flash_attention_2'.*for MllamaForConditionalGeneration, "):
        TransformersAdapter(TransformersTeacherConfig(checkpoint=str(checkpoint("mllama")), **options)).sites()
    assert TransformersAdapter(TransformersTeacherConfig(checkpoint=str(checkpoint("llama")), **options)).sites()


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_flash_attention_is_refused_where_it_would_drop_the_model_s_mask(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Releases of transformers before 5.24 offer it for these."""
    monkeypatch.setattr(models, "SUPPORT_FLAGS", {})
    options = TransformersTeacherConfig(checkpoint=str(checkpoint(name)), attention="flash_attention_2")
    with pytest.raises(CheckpointError, match=r"drops the mask by which \w+ForConditionalGeneration reads some tokens"):
        TransformersAdapter(options).sites()


@pytest.mark.parametrize("checkpoint", ["./no/such/folder", "/nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist_says_what_could_be_given(checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match=r"^checkpoint: there is no folder '.*'\. Give a folder"):
        TransformersAdapter(TransformersTeacherConfig(checkpoint=checkpoint)).sites()
