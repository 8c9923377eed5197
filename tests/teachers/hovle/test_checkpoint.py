"""Checkpoints in the published layout: single and sharded, fp32 and bf16, damaged and mismatched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_hovle.checkpoint import load_model, model_from_tensors, published_state, read_tensors, save_model
from linearize_hovle.configuration import HovleConfig, HovleEmbeddingConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from linearize_hovle.published import fuse_wqkv, name_pairs, split_wqkv
from linearize_hovle.published_config import config_from_published, config_to_published
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from linearize.errors import CheckpointError

Make = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, make_model: Make) -> Path:
    save_model(make_model(), tmp_path)
    return tmp_path


def test_wqkv_rows_split_by_key_value_group() -> None:
    fused = torch.arange(2 * 4 * 3).view(24, 1)
    query, key, value = split_wqkv(fused, 4, 2)
    assert query[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert key[:, 0].tolist() == [6, 7, 8, 18, 19, 20]
    assert value[:, 0].tolist() == [9, 10, 11, 21, 22, 23]
    assert torch.equal(fuse_wqkv(query, key, value, 2), fused)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"use_pixel_shuffle_proj": False}])
@pytest.mark.parametrize("shard_size", ["5GB", 8000])
def test_a_model_survives_the_published_layout_bit_for_bit(
    make_model: Make, tmp_path: Path, changes: dict[str, Any], shard_size: int | str
) -> None:
    model = make_model(**changes)
    save_model(model, tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == isinstance(shard_size, int)
    again = load_model(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert config_to_published(again.config) == config_to_published(model.config) | {"torch_dtype": "float32"}


def test_a_model_without_pixel_shuffle_takes_every_patch_as_a_token(make_model: Make, make_inputs: Make) -> None:
    model = make_model(use_pixel_shuffle_proj=False)
    assert model.config.num_image_tokens == 16
    assert torch.isfinite(model(**make_inputs(model, [1])).logits).all()


def test_half_precision_weights_stay_so_unless_another_dtype_is_asked_for(folder: Path) -> None:
    save_model(load_model(folder, dtype=torch.bfloat16), folder)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32


def test_a_loaded_model_is_ready_to_train_and_in_eval_mode(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())


def test_sites_without_attention_leave_no_attention_behind(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    config, state = published_state(model, without_attention={1, 2})
    missing = {"embedding_model.encoder.1.attention", "language_model.model.layers.0.attention"}
    assert not any(name.rsplit(".", 2)[0] in missing for name in state)
    again = model_from_tensors(config_from_published(config), state, without_attention={1, 2})
    assert not again.embedding_model.layers[1].self_attn.q_proj.weight.any()
    assert torch.equal(
        again.language_model.layers[1].mlp.up_proj.weight, model.language_model.layers[1].mlp.up_proj.weight
    )
    with pytest.raises(CheckpointError, match=r"encoder\.1\.attention\.wo\.weight"):
        model_from_tensors(config_from_published(config), state)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
        load_model(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    save_model(model, folder, max_shard_size=8000)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} does not exist, but the index"):
        load_model(folder)


def test_a_shard_without_a_promised_tensor_is_named(folder: Path) -> None:
    model = load_model(folder)
    save_model(model, folder, max_shard_size=8000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name, shard = next(iter(index["weight_map"].items()))
    save_file({"other": torch.zeros(1)}, folder / shard)
    with pytest.raises(CheckpointError, match=rf"{shard} lacks .*{name.split('.')[0]}"):
        load_model(folder)


def test_missing_and_surplus_keys_are_named_together(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["language_model.extra"] = state.pop("language_model.model.norm.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"lacks language_model\.model\.norm\.weight and holds language_model\.extra"
    ):
        load_model(folder)


def test_a_shape_that_does_not_fit_the_configuration_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["intermediate_size"] = 50
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight \[48, 32\] instead of \[50, 32\]"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_tensors_are_refused_whatever_dtype_is_asked_for(dtype: torch.dtype, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["language_model.model.norm.weight"] = state["language_model.model.norm.weight"].to(dtype)
    save_file(state, folder / "model.safetensors")
    for asked in (None, torch.float32):
        with pytest.raises(CheckpointError, match=rf"1 tensors are {dtype} \(language_model\.norm\.weight\)"):
            load_model(folder, dtype=asked)


@pytest.mark.parametrize("section", [None, "llm_config"])
def test_a_quantised_checkpoint_is_refused_by_its_configuration(section: str | None, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section])["quantization_config"] = {"quant_method": "awq"}
    with pytest.raises(CheckpointError, match="has a quantization_config"):
        config_from_published(config)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("embedding_config", {"use_ls": True}, "use_ls is true"),
        ("embedding_config", {"special_token_maps": {"<img>": 96}}, "special_token_maps is not empty"),
        ("embedding_config", {"pixel_shuffle_loc": "middle"}, "expected 'pre' or 'post'"),
        ("embedding_config", {"llm_hidden_size": 64}, "must have one width"),
        ("llm_config", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'linear' and 'dynamic'"),
    ],
)
def test_an_unsupported_configuration_says_what_is_supported(
    folder: Path, section: str, change: dict[str, Any], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[section] |= change
    with pytest.raises(CheckpointError, match=message):
        config_from_published(config)


def test_an_incomplete_configuration_names_the_fields_that_are_missing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["llm_config"]["num_hidden_layers"], config["llm_config"]["vocab_size"]
    with pytest.raises(CheckpointError, match="llm_config lacks num_hidden_layers, vocab_size"):
        config_from_published(config)
    with pytest.raises(CheckpointError, match="no table 'llm_config'"):
        config_from_published({"embedding_config": config["embedding_config"]})


def test_folders_without_weights_or_config_say_what_was_due(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        read_tensors(tmp_path / "nothing")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load_model(folder)


def test_a_configuration_is_written_back_as_it_was_read_but_for_what_changed(folder: Path) -> None:
    published = json.loads((folder / "config.json").read_text())
    published |= {"force_image_size": None, "unknown": [1]}
    del published["use_thumbnail"]
    published["llm_config"] |= {"num_key_value_heads": None, "rope_scaling": {"type": "dynamic", "factor": 2}}
    config = config_from_published(published)
    assert config_to_published(config) == published
    config.use_thumbnail = False
    config.language.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0}
    changed = config_to_published(config)
    assert changed["use_thumbnail"] is False
    assert changed["llm_config"]["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert changed["llm_config"]["rope_theta"] == 5.0
    assert changed["unknown"] == [1]


def test_the_published_sizes_give_the_published_number_of_tensors_and_parameters() -> None:
    """236 tensors follow from the published index file, 2,606,327,808 parameters from the sizes of its shards."""
    tower = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 92553,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    config = HovleConfig(
        embedding_config=HovleEmbeddingConfig(**tower, num_hidden_layers=8),
        text_config=LlamaConfig(**tower, num_hidden_layers=24),
    )
    with torch.device("meta"):
        model = HovleForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_606_327_808
    assert len(list(name_pairs(config))) == 236
    assert config.num_image_tokens == 256
