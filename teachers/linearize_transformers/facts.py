"""What a site's attention does with its projections: scale, rotary embedding, window, soft cap, norms."""

from __future__ import annotations

from typing import Any

from torch import nn

from linearize.protocols import AttentionWeights
from linearize_transformers.attention import find_norms, has_rope, read_norm, rotary_style, separate
from linearize_transformers.sites import FoundSite


def attention_weights(attention: Any, found: FoundSite, config: Any) -> AttentionWeights:
    """The projections of one site as separate tensors, and the numbers that go with them.

    Args:
        config: the decoder's configuration.
    """
    (q, k, v), (q_bias, k_bias, v_bias) = separate(attention, found.form, found.shape)
    output = getattr(attention, found.form.output)
    norms = [None if norm is None else read_norm(norm, _norm_shape(norm)) for norm in find_norms(attention)]
    q_norm, k_norm = norms
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
        norm="rms" if q_norm is None else q_norm.kind,
        norm_eps=1e-6 if q_norm is None else q_norm.eps,
        scale=float(getattr(attention, "scaling", found.shape.key_dim**-0.5)),
        rope_theta=_rope_theta(attention, found, config),
        rope_style=rotary_style(attention),
        window=window(attention, found, config),
        softcap=_softcap(attention, config),
    )


def layer_type(found: FoundSite, config: Any) -> str:
    """What the configuration calls the layer; "full_attention" where it does not tell layers apart."""
    types = getattr(config, "layer_types", None)
    return str(types[found.site.layer]) if types else "full_attention"


def window(attention: Any, found: FoundSite, config: Any) -> int | None:
    """Tokens that a query sees, itself included; None for all before it."""
    if hasattr(attention, "sliding_window"):
        size = attention.sliding_window
    else:
        size = getattr(config, "sliding_window", None)
        if getattr(config, "layer_types", None) and layer_type(found, config) != "sliding_attention":
            size = None
    return None if size is None else int(size)


def _rope_theta(attention: Any, found: FoundSite, config: Any) -> float | None:
    if not has_rope(attention):
        return None
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get(layer_type(found, config), parameters)
    theta = parameters.get("rope_theta")
    return None if theta is None else float(theta)


def _softcap(attention: Any, config: Any) -> float | None:
    """None under sdpa, which has no soft cap: transformers before 5.21 runs Gemma 2 so unless told to use eager."""
    return None if config._attn_implementation == "sdpa" else getattr(attention, "attn_logit_softcapping", None)


def _norm_shape(norm: nn.Module) -> tuple[int, ...]:
    return tuple(next(norm.parameters()).shape)
