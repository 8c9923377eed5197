"""What one attention site has to hold to: how it is called, what it gives, and what an adapter says of it.

Letters: B batch, T tokens, D model width, N query heads, V value width, R width of a head that turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearize.protocols import AttentionSite, AttentionWeights
from linearize.testing.attention import first_angles
from linearize.testing.watching import SiteCall


def check_module(modules: Mapping[str, nn.Module], site: AttentionSite) -> None:
    """Fails unless the model has the site's module and its output projection, of the sizes that the site says."""
    __tracebackhide__ = True
    where = f"site {site.index} ({site.path})"
    assert site.path in modules, (
        f"{where}: the model has no such module; in its layers there are "
        f"{', '.join(name for name in modules if name.endswith('.0')) or 'no lists of modules'} and what is "
        "in them"
    )
    projection = modules.get(f"{site.path}.{site.output_projection}")
    assert isinstance(projection, nn.Linear), (
        f"{where}: output_projection is '{site.output_projection}', which is a {type(projection).__name__}; "
        "the attention has to keep an nn.Linear there. Its modules: "
        f"{', '.join(name for name, _ in modules[site.path].named_children())}"
    )
    found = (projection.out_features, projection.in_features)
    due = (site.hidden_size, site.num_heads * site.value_dim)
    assert found == due, (
        f"{where}: '{site.output_projection}' goes from {found[1]} numbers to {found[0]}; by the site's "
        f"num_heads * value_dim and hidden_size it would go from {due[1]} to {due[0]}"
    )
    assert site.num_heads % site.num_key_value_heads == 0, (
        f"{where}: {site.num_heads} query heads cannot share {site.num_key_value_heads} key-value heads evenly"
    )


def check_call(call: SiteCall, site: AttentionSite, *, caches: bool) -> None:
    """Fails unless the decoder called the module as it will call a site, and got back what a site gives."""
    __tracebackhide__ = True
    where = f"site {site.index} ({site.path})"
    assert call.num_calls == 1, (
        f"{where}: the decoder called it {call.num_calls} times in one forward pass; once is due"
    )
    names = sorted(call.kwargs)
    num_inputs = len(call.args) + ("hidden_states" in names)
    assert num_inputs == 1, (
        f"{where}: the decoder calls it with {len(call.args)} positional arguments and the keywords {names}. A site "
        "takes its input first, or as hidden_states, and all else by name: write attention(x, attention_mask=mask, "
        "...)"
    )
    gives_tuple = isinstance(call.output, tuple) and isinstance(call.output[0], Tensor)
    assert gives_tuple, (
        f"{where}: it returns a {type(call.output).__name__}. A site returns a tuple, its output [B, T, D] first: "
        "return (output, None) from the attention, and take [0] of it in the layer"
    )
    assert len(call.projected) == 1, (
        f"{where}: it calls '{site.output_projection}' {len(call.projected)} times; once is due, with the output of "
        "all heads side by side. linearize reads the heads' output there"
    )
    shape, due = tuple(call.projected[0].shape), (*call.x_BTD.shape[:2], site.num_heads * site.value_dim)
    assert shape == due, f"{where}: '{site.output_projection}' got a tensor {shape}; [B, T, N*V] = {due} is due"
    if caches:
        assert call.kwargs.get(site.cache_argument) is not None, (
            f"{where}: with use_cache=True its decoder passes no '{site.cache_argument}', but {names}. A mixer keeps "
            "its state in that cache: name the keyword in the site's cache_argument, and let the model make a "
            "DynamicCache when it gets none"
        )
    if site.has_rope:
        _check_position(call.position, site, where, call.x_BTD.shape[1])


def _check_position(position: Any, site: AttentionSite, where: str, length: int) -> None:
    __tracebackhide__ = True
    if position is None:
        raise AssertionError(
            f"{where}: the site has_rope, but its decoder passes no position_embeddings. Let the decoder compute "
            "(cos, sin) once and pass them to its attentions by that name, so that mixers can turn q and k too; or "
            "set has_rope = False, and mixers go without"
        )
    shapes = [tuple(part.shape) for part in position] if isinstance(position, tuple) else type(position).__name__
    is_pair = isinstance(position, tuple) and len(position) == 2 and position[0].shape == position[1].shape
    fits = is_pair and position[0].dim() == 3 and position[0].shape[1] == length
    assert fits, (
        f"{where}: position_embeddings is {shapes}; two tensors (cos, sin) of one shape [B or 1, {length}, R] are due"
    )
    width = position[0].shape[-1]
    is_possible = width % 2 == 0 and width <= site.key_dim
    assert is_possible, (
        f"{where}: position_embeddings are {width} wide; an even number up to key_dim = {site.key_dim} is due"
    )
    for part in position:
        first, second = part.chunk(2, -1)
        beside = site.rope_style == "interleaved" and torch.equal(part[..., 0::2], part[..., 1::2])
        assert beside or torch.equal(first, second), (
            f"{where}: position_embeddings are {width} wide, but do not hold each angle twice. One angle turns a "
            "pair of numbers and is there for both: torch.cat([angle, angle], -1).cos(), and the same of sin"
        )


def check_shapes(weights: AttentionWeights, site: AttentionSite) -> None:
    """Fails unless projections and biases have the shapes that the site's numbers give."""
    __tracebackhide__ = True
    keys, values = site.num_key_value_heads * site.key_dim, site.num_key_value_heads * site.value_dim
    due: dict[str, tuple[int, ...]] = {
        "q": (site.num_heads * site.key_dim, site.hidden_size),
        "k": (keys, site.hidden_size),
        "v": (values, site.hidden_size),
        "o": (site.hidden_size, site.num_heads * site.value_dim),
    }
    if weights.gate is not None:
        due["gate"] = (site.num_heads * site.value_dim, site.hidden_size)
    due |= {f"{name}_bias": shape[:1] for name, shape in due.items() if getattr(weights, f"{name}_bias") is not None}
    found = {name: tuple(getattr(weights, name).shape) for name in due}
    wrong = [f"{name} is {found[name]}, {due[name]} was due" for name in due if found[name] != due[name]]
    assert not wrong, (
        f"site {site.index} ({site.path}): weights(site) has other shapes than the site's numbers of heads, key_dim, "
        f"value_dim and hidden_size give: {'; '.join(wrong)}. Rows are outputs, as nn.Linear stores them"
    )


def check_rope(weights: AttentionWeights, site: AttentionSite, position: Any) -> None:
    """Fails unless site and weights agree on the rotary embedding, and the decoder passes its angles."""
    __tracebackhide__ = True
    where = f"site {site.index} ({site.path})"
    assert site.has_rope == (weights.rope_theta is not None), (
        f"{where}: has_rope is {site.has_rope}, but rope_theta is {weights.rope_theta}; with a rotary embedding both "
        "say so"
    )
    assert not site.has_rope or site.rope_style == weights.rope_style, (
        f"{where}: rope_style is '{site.rope_style}' at the site and '{weights.rope_style}' in weights(site); mixers "
        "go by the site's"
    )
    if site.has_rope:
        _check_position(position, site, where, position[0].shape[1] if isinstance(position, tuple) else 0)


def check_theta(weights: AttentionWeights, site: AttentionSite, position: tuple[Tensor, Tensor]) -> None:
    """Fails unless the decoder's angles are those of an unscaled rotary embedding with the base that is named."""
    __tracebackhide__ = True
    assert weights.rope_theta is not None
    width = position[0].shape[-1]
    found, due = first_angles(position, weights.rope_style), weights.rope_theta ** (-2 / width)
    if not torch.allclose(found, torch.full_like(found, due), rtol=1e-3, atol=1e-5):
        angle = float(found.median())
        raise AssertionError(
            f"site {site.index} ({site.path}): rope_theta = {weights.rope_theta:g} would turn the second pair of a "
            f"head by {due:.5f} from one token to the next; the decoder turns it by {angle:.5f}, as rope_theta = "
            f"{angle ** (-width / 2):g} does. If angles are scaled or tokens have other distances, set plain_rope = "
            "False in the test class"
        )


def check_facts(weights: AttentionWeights, site: AttentionSite) -> None:
    """A mixer is built from what the site says and seeded from the weights: both must speak of one attention."""
    shapes = {"head": (site.key_dim,), "heads": (site.num_heads, site.key_dim), "all": (site.num_heads * site.key_dim,)}
    norm, q_norm = site.qk_norm, weights.q_norm
    said = {
        "qkv_bias": site.qkv_bias, "scale": site.scale or site.key_dim**-0.5, "window": site.window,
        "softcap": site.softcap, "v_norm_eps": site.v_norm_eps,
        "qk_norm": norm and (norm.kind, shapes[norm.over], norm.eps),
    }  # fmt: skip
    found = {
        "qkv_bias": any(bias is not None for bias in (weights.q_bias, weights.k_bias, weights.v_bias)),
        "scale": weights.scale, "window": weights.window, "softcap": weights.softcap, "v_norm_eps": weights.v_norm_eps,
        "qk_norm": None if q_norm is None else (weights.norm, tuple(q_norm.shape), weights.norm_eps),
    }  # fmt: skip
    differ = [
        f"{name} = {said[name]!r}, but its weights say {found[name]!r}"
        for name in said
        if not _same(said[name], found[name])
    ]
    assert not differ, (
        f"site {site.index} ({site.path}) has {'; '.join(differ)}: give sites() the same facts as weights(site), since "
        "mixers that keep a part of the attention are built from the site"
    )
    has_bias = weights.q_norm_bias is not None or weights.k_norm_bias is not None
    assert not has_bias or (norm is not None and norm.has_bias), (
        f"site {site.index} ({site.path}): its norms of q and k have a bias; say so with qk_norm.has_bias"
    )


def _same(said: Any, found: Any) -> bool:
    is_number = isinstance(said, float) and isinstance(found, float)
    return math.isclose(said, found, rel_tol=1e-6) if is_number else bool(said == found)
