"""Whether a site and its weights speak of one attention: mixers are built from the one and seeded from the other."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from linearize.protocols import AttentionSite, AttentionWeights


class _NormFacts(NamedTuple):
    """A norm as both can say it; messages show it."""

    norm: str
    shape: tuple[int, ...]
    norm_eps: float

    def __repr__(self) -> str:
        return f"{self.norm} over {list(self.shape)} with eps {self.norm_eps:g}"


def disagreements(weights: AttentionWeights, site: AttentionSite) -> list[str]:
    """What the two say differently, a phrase each; empty where they agree."""
    shapes = {"head": (site.key_dim,), "heads": (site.num_heads, site.key_dim), "all": (site.num_heads * site.key_dim,)}
    norm, q_norm = site.qk_norm, weights.q_norm
    said = {
        "qkv_bias": site.qkv_bias, "scale": site.scale or site.key_dim**-0.5, "window": site.window,
        "softcap": site.softcap, "v_norm_eps": site.v_norm_eps,
        "qk_norm": norm and _NormFacts(norm.kind, shapes[norm.over], norm.eps),
    }  # fmt: skip
    found = {
        "qkv_bias": any(bias is not None for bias in (weights.q_bias, weights.k_bias, weights.v_bias)),
        "scale": weights.scale, "window": weights.window, "softcap": weights.softcap, "v_norm_eps": weights.v_norm_eps,
        "qk_norm": None if q_norm is None else _NormFacts(weights.norm, tuple(q_norm.shape), weights.norm_eps),
    }  # fmt: skip
    differ = [
        f"{name} = {said[name]!r}, but its weights say {found[name]!r}"
        for name in said
        if not _same(said[name], found[name])
    ]
    if site.has_rope != (weights.rope_theta is not None):
        differ.append(
            f"has_rope = {site.has_rope}, but its weights say rope_theta = {weights.rope_theta}; with a rotary "
            "embedding both say so"
        )
    elif site.has_rope and site.rope_style != weights.rope_style:
        differ.append(f"rope_style = {site.rope_style!r}, but its weights say {weights.rope_style!r}")
    has_bias = weights.q_norm_bias is not None or weights.k_norm_bias is not None
    if has_bias and (norm is None or not norm.has_bias):
        differ.append("no qk_norm.has_bias, but its weights have a bias of q_norm or k_norm")
    return differ


def _same(said: Any, found: Any) -> bool:
    is_number = isinstance(said, float) and isinstance(found, float)
    return math.isclose(said, found, rel_tol=1e-6) if is_number else bool(said == found)
