"""Tensor names of the published HoVLE layout and of ours, one table for both directions.

The published attention stores query, key and value rows in one matrix ``wqkv``, grouped by key-value head: the group's
query heads, its key head, its value head. Ours keeps three projections, as transformers does everywhere.

Letters: N query heads, M key-value heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linearize.errors import CheckpointError
from linearize_hovle.configuration import HovleConfig

MLP_NAMES = {
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True, slots=True)
class NamePair:
    """One published tensor and ours: one name, or the names of query, key and value with (N, M) to split by."""

    published: str
    ours: tuple[str, ...]
    heads: tuple[int, int] | None = None


def layer_prefixes(config: HovleConfig) -> list[tuple[str, str]]:
    """Published and own prefix of every layer through both towers, in execution order."""
    embedding = [f"encoder.{i}." for i in range(config.embedding.num_hidden_layers)]
    language = [f"layers.{i}." for i in range(config.language.num_hidden_layers)]
    return [
        (f"embedding_model.{name}", f"embedding_model.{name.replace('encoder', 'layers')}") for name in embedding
    ] + [(f"language_model.model.{name}", f"language_model.{name}") for name in language]


def name_pairs(config: HovleConfig, without_attention: Collection[int] = ()) -> Iterator[NamePair]:
    """Every tensor of a checkpoint; the sites named have no attention tensors."""
    vision, table = "embedding_model.vision_embeddings", "embedding_model.vision"
    for name in ("class_embedding", "patch_embedding.weight", "patch_embedding.bias", "position_embedding"):
        yield NamePair(f"{vision}.{name}", (f"{table}.{name}",))
    yield NamePair("embedding_model.llm_text_embeddings.weight", ("embedding_model.embed_tokens.weight",))
    if config.embedding.use_pixel_shuffle_proj:
        for theirs, ours in (("0", "input_projection"), ("2", "output_projection")):
            for kind in ("weight", "bias"):
                yield NamePair(
                    f"embedding_model.pixel_shuffle_proj.{theirs}.{kind}",
                    (f"embedding_model.projection.{ours}.{kind}",),
                )
    for index, (theirs, ours) in enumerate(layer_prefixes(config)):
        tower = config.embedding if index < config.embedding.num_hidden_layers else config.language
        heads = (tower.num_attention_heads, tower.num_key_value_heads or tower.num_attention_heads)
        if index not in without_attention:
            for kind in ("weight", "bias") if tower.attention_bias else ("weight",):
                projections = tuple(f"{ours}self_attn.{name}_proj.{kind}" for name in "qkv")
                yield NamePair(f"{theirs}attention.wqkv.{kind}", projections, heads)
                yield NamePair(f"{theirs}attention.wo.{kind}", (f"{ours}self_attn.o_proj.{kind}",))
        for their_name, our_name in MLP_NAMES.items():
            yield NamePair(f"{theirs}{their_name}.weight", (f"{ours}{our_name}.weight",))
    yield NamePair("language_model.model.tok_embeddings.weight", ("language_model.embed_tokens.weight",))
    yield NamePair("language_model.model.norm.weight", ("language_model.norm.weight",))
    yield NamePair("language_model.output.weight", ("lm_head.weight",))


def to_our_names(
    config: HovleConfig, state: Mapping[str, Tensor], without_attention: Collection[int] = ()
) -> dict[str, Tensor]:
    """Published tensors under our names, ``wqkv`` split; every other tensor is the same object.

    Raises:
        CheckpointError: keys are missing or surplus; names them.
    """
    pairs = list(name_pairs(config, without_attention))
    wanted = {pair.published for pair in pairs}
    problems = []
    if missing := sorted(wanted - state.keys()):
        problems.append(f"lacks {_listed(missing)}")
    if surplus := sorted(state.keys() - wanted):
        problems.append(f"holds {_listed(surplus)}, which a HoVLE of this configuration does not have")
    if problems:
        raise CheckpointError(f"the checkpoint {' and '.join(problems)}; config.json and weights must belong together")
    ours: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = state[pair.published]
        parts = (tensor,) if pair.heads is None else split_wqkv(tensor, *pair.heads)
        ours.update(zip(pair.ours, parts, strict=True))
    return ours


def to_published_names(
    config: HovleConfig, state: Mapping[str, Tensor], without_attention: Collection[int] = ()
) -> dict[str, Tensor]:
    """Our tensors under the published names, ``wqkv`` fused; tensors without a published name are left out.

    Raises:
        CheckpointError: a tensor that the layout needs is not in ``state``; names it.
    """
    pairs = list(name_pairs(config, without_attention))
    if missing := sorted(name for pair in pairs for name in pair.ours if name not in state):
        raise CheckpointError(
            f"the model has no {_listed(missing)}; sites whose attention was replaced must be named in "
            "without_attention"
        )
    published: dict[str, Tensor] = {}
    for pair in pairs:
        tensors = [state[name] for name in pair.ours]
        if pair.heads is None:
            (published[pair.published],) = tensors
        else:
            query, key, value = tensors
            published[pair.published] = fuse_wqkv(query, key, value, pair.heads[1])
    return published


def split_wqkv(fused: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query [N*K, ...], key [M*K, ...] and value [M*K, ...] of the fused rows, each head-major and contiguous.

    Raises:
        CheckpointError: the number of rows does not fit the numbers of heads.
    """
    group = heads // kv_heads
    if fused.shape[0] % (kv_heads * (group + 2)):
        raise CheckpointError(
            f"wqkv has {fused.shape[0]} rows, which {heads} query and {kv_heads} key-value heads cannot share"
        )
    rows = fused.unflatten(0, (kv_heads, group + 2, -1))
    query, key, value = rows[:, :group], rows[:, group], rows[:, group + 1]
    return query.flatten(0, 2).contiguous(), key.flatten(0, 1).contiguous(), value.flatten(0, 1).contiguous()


def fuse_wqkv(query: Tensor, key: Tensor, value: Tensor, kv_heads: int) -> Tensor:
    """The inverse of ``split_wqkv``."""
    parts = [rows.unflatten(0, (kv_heads, -1)) for rows in (query, key, value)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
