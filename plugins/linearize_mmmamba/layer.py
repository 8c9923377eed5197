"""One linear layer of a published mmMamba checkpoint as a "mamba2" mixer: names, order of rows, options.

The published layer keeps five projections in one matrix, rows [v | k | q | g | dt], and its short convolution runs over
the channels [v | k | q]. All rows are head-major, keys and values once per key-value head.
Letters: D model width, N query heads, M key-value heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linearize.errors import CheckpointError
from linearize.protocols import AttentionSite

FUSED = "wvkqgdt.weight"
OUTPUT = "o_proj.weight"
FUSED_PARTS = ("v_proj.weight", "k_proj.weight", "q_proj.weight", "g_proj.weight", "in_proj.weight")
RENAMED = {
    "conv1d.weight": "conv1d.weight",
    "conv1d.bias": "conv1d.bias",
    "g_norm_swish_gate.weight": "g_norm.weight",
    "dt_bias": "dt_bias",
    "A_log_bias": "A_log",
}
NAMES = (FUSED, OUTPUT, *RENAMED)

# What the published code computes, in the mixer's own options; the width of the convolution is read off its weight.
FIXED_OPTIONS: dict[str, Any] = {
    "conv_activation": "silu",
    "qkv_bias": False,
    "key_value_heads": "grouped",
    "rope": False,
    "qk_norm": False,
    "output_norm": True,
    "norm_eps": 1e-5,
    "gate": True,
    "skip": False,
    "dt_scales_input": True,
}


def row_counts(site: AttentionSite) -> tuple[int, ...]:
    """Rows of v, k, q, g and dt in the fused matrix."""
    return (
        site.num_key_value_heads * site.value_dim,
        site.num_key_value_heads * site.key_dim,
        site.num_heads * site.key_dim,
        site.num_heads * site.value_dim,
        site.num_heads,
    )


def split_layer(layer: Mapping[str, Tensor], site: AttentionSite) -> dict[str, Tensor]:
    """The mixer's parameters by name, from the published tensors of its layer (without their prefix).

    Raises:
        CheckpointError: the fused matrix has another shape than the site's heads and widths ask for.
    """
    fused, counts = layer[FUSED], row_counts(site)
    if fused.shape != (sum(counts), site.hidden_size):
        raise CheckpointError(
            f"site {site.index}: {FUSED} has shape {list(fused.shape)}; config.json asks for "
            f"{[sum(counts), site.hidden_size]}, rows v, k, q, g, dt = {', '.join(map(str, counts))}"
        )
    parts = {name: part.clone() for name, part in zip(FUSED_PARTS, fused.split(list(counts)), strict=True)}
    return parts | {ours: layer[theirs] for theirs, ours in RENAMED.items()}


def fuse_layer(parameters: Mapping[str, Tensor], output: Tensor) -> dict[str, Tensor]:
    """The inverse of ``split_layer``, with the site's output projection [D, N*V]."""
    fused = torch.cat([parameters[name] for name in FUSED_PARTS])
    return {FUSED: fused, OUTPUT: output} | {theirs: parameters[ours] for theirs, ours in RENAMED.items()}
