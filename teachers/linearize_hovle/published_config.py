"""The published config.json of HoVLE, to our configuration and back.

The published file calls the language model's section ``llm_config`` and holds many fields that nothing reads; the whole
file is kept in ``HovleConfig.published`` so that it can be written back as it was.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from linearize.errors import CheckpointError
from linearize_hovle.configuration import HovleConfig, HovleEmbeddingConfig

PUBLISHED_MODEL_TYPE = "internvl_chat"
DEFAULT_ROPE_THETA = 10000.0
ROPE_TYPES = ("default", "linear", "dynamic")

TOP_FIELDS = {
    "force_image_size": "image_size",
    "template": "template",
    "dynamic_image_size": "dynamic_image_size",
    "use_thumbnail": "use_thumbnail",
    "min_dynamic_patch": "min_dynamic_patch",
    "max_dynamic_patch": "max_dynamic_patch",
}
TOWER_FIELDS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_act": "hidden_act",
    "rms_norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
}
EMBEDDING_FIELDS = TOWER_FIELDS | {
    "llm_vocab_size": "vocab_size",
    "attention_bias": "attention_bias",
    "num_channels": "num_channels",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "downsample_ratio": "downsample_ratio",
    "pixel_shuffle_loc": "pixel_shuffle_loc",
    "use_pixel_shuffle_proj": "use_pixel_shuffle_proj",
    "img_context_token_id": "image_token_id",
}
LANGUAGE_FIELDS = TOWER_FIELDS | {
    "vocab_size": "vocab_size",
    "bias": "attention_bias",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
OPTIONAL_FIELDS = frozenset({"pixel_shuffle_loc", "attention_bias", "bias", "pad_token_id", "dynamic_image_size"})
DEFAULT_PUBLISHED: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "model_type": PUBLISHED_MODEL_TYPE,
    "normalize_encoder_output": False,
    "pad2square": False,
    "ps_version": "v2",
    "select_layer": -1,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "embedding_config": {
        "attention_dropout": 0.0,
        "initializer_factor": 1e-5,
        "mlp_bias": False,
        "model_type": "holistic_embedding",
        "pretraining_tp": 1,
        "special_token_maps": {},
        "use_2d_sincos_pos_embed": False,
        "use_autoregressive_loss": False,
        "use_img_start_end_tokens": True,
        "use_ls": False,
    },
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "initializer_range": 0.02,
        "model_type": "internlm2",
        "tie_word_embeddings": False,
        "use_cache": True,
    },
}


def config_from_published(published: dict[str, Any]) -> HovleConfig:
    """Reads the published config.json.

    Raises:
        CheckpointError: a section or field is missing, or asks for what this implementation does not have.
    """
    sections = {name: published.get(name) for name in ("embedding_config", "llm_config")}
    if any(isinstance(table, dict) and table.get("quantization_config") for table in (published, *sections.values())):
        raise CheckpointError(
            "config.json has a quantization_config, but a HoVLE is read with plain weights, which students are seeded "
            "from; take the checkpoint that the quantised one was made from, such as OpenGVLab/HoVLE"
        )
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise CheckpointError(
                f"config.json has no table '{name}'; a HoVLE config.json holds embedding_config and llm_config"
            )
    embedding = dict(sections["embedding_config"] or {})
    language = dict(sections["llm_config"] or {})
    _refuse_unsupported(embedding, language)
    top = _read_fields(published, {**TOP_FIELDS}, "config.json", optional=frozenset(TOP_FIELDS))
    top.setdefault("image_size", embedding.get("image_size", 448))
    return HovleConfig(
        embedding_config=HovleEmbeddingConfig(
            **_read_fields(embedding, EMBEDDING_FIELDS, "embedding_config"), **_fixed(embedding, "embedding_config")
        ),
        text_config=LlamaConfig(
            **_read_fields(language, LANGUAGE_FIELDS, "llm_config"), **_fixed(language, "llm_config")
        ),
        published=copy.deepcopy(published),
        **top,
    )


def config_to_published(config: HovleConfig) -> dict[str, Any]:
    """The published config.json: what was read, with the fields that have changed since; all fields for a new model."""
    published = copy.deepcopy(DEFAULT_PUBLISHED if config.published is None else config.published)
    before = None if config.published is None else config_from_published(config.published)
    _write_fields(published, config, before, TOP_FIELDS)
    _write_tower(published["embedding_config"], config.embedding, before and before.embedding, EMBEDDING_FIELDS)
    _write_tower(published["llm_config"], config.language, before and before.language, LANGUAGE_FIELDS)
    if before is None:
        published["embedding_config"]["llm_hidden_size"] = config.language.hidden_size
    return published


def _write_fields(
    section: dict[str, Any], config: PreTrainedConfig, before: PreTrainedConfig | None, fields: dict[str, str]
) -> None:
    for theirs, ours in fields.items():
        if before is None or getattr(before, ours) != getattr(config, ours):
            section[theirs] = getattr(config, ours)


def _write_tower(
    section: dict[str, Any], tower: LlamaConfig, before: LlamaConfig | None, fields: dict[str, str]
) -> None:
    _write_fields(section, tower, before, fields)
    rope = tower.rope_parameters
    if before is None or before.rope_parameters != rope:
        section["rope_theta"] = rope["rope_theta"]
        is_plain = rope["rope_type"] == "default"
        section["rope_scaling"] = None if is_plain else {"type": rope["rope_type"], "factor": rope["factor"]}


def _read_fields(
    section: dict[str, Any], fields: dict[str, str], where: str, optional: frozenset[str] = OPTIONAL_FIELDS
) -> dict[str, Any]:
    missing = sorted(name for name in fields if name not in section and name not in optional)
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; without them the model's shape is unknown")
    present = {ours: section[theirs] for theirs, ours in fields.items() if theirs in section}
    return {name: value for name, value in present.items() if value is not None or name == "pad_token_id"}


def _fixed(section: dict[str, Any], where: str) -> dict[str, Any]:
    """What follows from the published section without being a plain rename."""
    scaling = section.get("rope_scaling")
    rope = {"rope_type": "default", "rope_theta": float(section.get("rope_theta", DEFAULT_ROPE_THETA))}
    if scaling:
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in ROPE_TYPES:
            raise CheckpointError(f"{where}.rope_scaling.type is {kind!r}; HoVLE knows 'linear' and 'dynamic'")
        rope |= {"rope_type": kind}
        if kind != "default":
            if "factor" not in scaling:
                raise CheckpointError(f"{where}.rope_scaling is {scaling}; expected a 'factor' beside its type")
            rope |= {"factor": float(scaling["factor"])}
    return {
        "rope_parameters": rope,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "head_dim": section["hidden_size"] // section["num_attention_heads"],
    }


def _refuse_unsupported(embedding: dict[str, Any], language: dict[str, Any]) -> None:
    if embedding.get("use_ls"):
        raise CheckpointError(
            "embedding_config.use_ls is true; layer scale exists in no published HoVLE and is not supported"
        )
    if embedding.get("special_token_maps"):
        raise CheckpointError(
            "embedding_config.special_token_maps is not empty; a separate table of special tokens exists in no "
            "published HoVLE and is not supported"
        )
    if embedding.get("pixel_shuffle_loc", "pre") not in ("pre", "post"):
        raise CheckpointError(
            f"embedding_config.pixel_shuffle_loc is {embedding['pixel_shuffle_loc']!r}; expected 'pre' or 'post'"
        )
    widths = {
        embedding.get("hidden_size"),
        embedding.get("llm_hidden_size", embedding.get("hidden_size")),
        language.get("hidden_size"),
    }
    if len(widths) > 1:
        raise CheckpointError(
            f"the embedding module and the language model must have one width, found {sorted(map(str, widths))}"
        )
