"""What a site's attention does with its projections: scale, rotary embedding, window, soft cap, norms."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, Literal

import torch
from torch import nn

from linearize.protocols import AttentionWeights, SiteNorm
from linearize_transformers.attention import (
    find_norms,
    norms_of_heads,
    output_gate,
    read_norm,
    separate,
    value_norm_eps,
)
from linearize_transformers.sites import FoundSite


def attention_weights(attention: Any, found: FoundSite, config: Any) -> AttentionWeights:
    """The projections of one site as separate tensors, and the numbers that go with them.

    Args:
        found: as ``with_facts`` gave it.
        config: the decoder's configuration.
    """
    site = found.site
    (q, k, v), (q_bias, k_bias, v_bias) = separate(attention, found.form, found.shape)
    output = getattr(attention, found.form.output)
    norms = [
        None if norm is None else read_norm(norm, _norm_shape(norm, site.key_dim), output.weight)
        for norm in find_norms(attention)
    ]
    q_norm, k_norm = norms
    gate, gate_bias = output_gate(attention, found.form, found.shape)
    return AttentionWeights(
        q=q,
        k=k,
        v=v,
        o=output.weight,
        q_bias=q_bias,
        k_bias=k_bias,
        v_bias=v_bias,
        o_bias=output.bias,
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        q_norm_bias=None if q_norm is None else q_norm.bias,
        k_norm_bias=None if k_norm is None else k_norm.bias,
        gate=gate,
        gate_bias=gate_bias,
        norm="rms" if q_norm is None else q_norm.kind,
        norm_eps=1e-6 if q_norm is None else q_norm.eps,
        v_norm_eps=site.v_norm_eps,
        scale=site.key_dim**-0.5 if site.scale is None else site.scale,
        rope_theta=_rope_theta(found, config),
        rope_style=site.rope_style,
        window=site.window,
        softcap=site.softcap,
    )


def with_facts(attention: Any, found: FoundSite, config: Any, *, own_mask: bool = False) -> FoundSite:
    """The same with all that its attention does to scores, queries and keys; no weight is read.

    Args:
        attention: may be on the meta device.
        config: the decoder's configuration.
        own_mask: whether the model is known to let tokens see what comes after them.
    """
    projections = [getattr(attention, name) for name in found.form.projections]
    default = found.shape.key_dim**-0.5
    scale = float(getattr(attention, "scaling", default)) if found.probed is None else found.probed.scale
    site = dataclasses.replace(
        found.site,
        qkv_bias=any(projection.bias is not None for projection in projections),
        qk_norm=_site_norm(find_norms(attention)[0], found.shape.key_dim),
        v_norm_eps=value_norm_eps(attention),
        scale=None if math.isclose(scale, default, rel_tol=1e-6) else scale,
        window=window(attention, found, config),
        softcap=_softcap(attention, config),
        own_mask=own_mask or layer_type(found, config) == "chunked_attention",
        sharpens_from=_sharpens_from(attention, config),
    )
    return dataclasses.replace(found, site=site)


def _site_norm(norm: nn.Module | None, key_dim: int) -> SiteNorm | None:
    if norm is None:
        return None
    # What kind it is shows when it runs, so a copy with ones for weights does.
    sample = copy.deepcopy(norm).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in sample.parameters():
            parameter.fill_(1.0)
    shape = _norm_shape(norm, key_dim)
    facts = read_norm(sample, shape, torch.empty(0))
    over: Literal["head", "heads", "all"] = "heads"
    if len(shape) == 1:
        over = "head" if shape[0] == key_dim else "all"
    return SiteNorm(kind=facts.kind, over=over, has_bias=facts.bias is not None, eps=facts.eps)


def layer_type(found: FoundSite, config: Any) -> str:
    """What the configuration calls the layer; "full_attention" where it does not tell layers apart."""
    types = getattr(config, "layer_types", None)
    return str(types[found.site.layer]) if types else "full_attention"


def window(attention: Any, found: FoundSite, config: Any) -> int | None:
    """Tokens that a query sees, itself included; None for all before it."""
    if found.probed is not None and found.probed.passes_window:
        return found.probed.window
    if hasattr(attention, "sliding_window"):
        size = attention.sliding_window
    else:
        size = getattr(config, "sliding_window", None)
        if getattr(config, "layer_types", None) and layer_type(found, config) != "sliding_attention":
            size = None
    return None if size is None else int(size)


def _sharpens_from(attention: Any, config: Any) -> int | None:
    """The first token whose query is multiplied by more than 1, in what Llama 4 began and Mistral took over."""
    if getattr(attention, "attn_temperature_tuning", False) and not getattr(attention, "use_rope", True):
        return int(attention.floor_scale) - 1
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("llama_4_scaling_beta"):
        return int(parameters["original_max_position_embeddings"])
    return None


def _rope_theta(found: FoundSite, config: Any) -> float | None:
    if not found.site.has_rope:
        return None
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get(layer_type(found, config), parameters)
    theta = parameters.get("rope_theta")
    return None if theta is None else float(theta)


def _softcap(attention: Any, config: Any) -> float | None:
    """None under sdpa, which has no soft cap: transformers before 5.21 runs Gemma 2 so unless told to use eager."""
    return None if config._attn_implementation == "sdpa" else getattr(attention, "attn_logit_softcapping", None)


def _norm_shape(norm: nn.Module, key_dim: int) -> tuple[int, ...]:
    """A norm without a weight is over each head by itself."""
    apart = norms_of_heads(norm)
    if apart:
        return (len(apart), key_dim)
    parameter = next(norm.parameters(), None)
    return (key_dim,) if parameter is None else tuple(parameter.shape)
