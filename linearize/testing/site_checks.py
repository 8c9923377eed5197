"""What one attention site has to hold to: how it is called, what it gives, and what an adapter says of it.

Letters: B batch, T tokens, D model width, N query heads, V value width, R width of a head that turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearize.proof.attention import first_angles
from linearize.proof.calls import SiteCall
from linearize.proof.facts import disagreements
from linearize.protocols import AttentionSite, AttentionWeights
from linearize.student.state import CACHE_NAME, passed_cache


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
        f"{where}: the decoder called it {call.num_calls} times in one forward pass; expected once"
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
        f"{where}: it calls '{site.output_projection}' {len(call.projected)} times; expected once, with the output of "
        "all heads side by side. linearize reads the heads' output there"
    )
    shape, due = tuple(call.projected[0].shape), (*call.x_BTD.shape[:2], site.num_heads * site.value_dim)
    assert shape == due, f"{where}: '{site.output_projection}' got a tensor {shape}; expected [B, T, N*V] = {due}"
    if caches:
        assert passed_cache(call.kwargs) is not None, (
            f"{where}: with use_cache=True its decoder passes no Cache, but {names}. A mixer keeps its state in it: "
            f"let the model make a DynamicCache when it gets none as '{CACHE_NAME}', and pass it on by name"
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
        f"{where}: position_embeddings is {shapes}; expected two tensors (cos, sin) of one shape [B or 1, {length}, R]"
    )
    width = position[0].shape[-1]
    is_possible = width % 2 == 0 and width <= site.key_dim
    assert is_possible, (
        f"{where}: position_embeddings are {width} wide; expected an even number up to key_dim = {site.key_dim}"
    )
    beside = all(torch.equal(part[..., 0::2], part[..., 1::2]) for part in position)
    apart = all(torch.equal(*part.chunk(2, -1)) for part in position)
    if beside and not apart and site.rope_style != "interleaved":
        raise AssertionError(
            f"{where}: position_embeddings hold each angle at 2i and 2i + 1, but the site has rope_style = "
            f"'{site.rope_style}', which reads it at i and i + R/2. If the attention turns neighbouring numbers "
            "together, set rope_style = 'interleaved' in sites() and weights(site); if it turns i and i + R/2, the "
            "angles are in the wrong order: torch.cat([angle, angle], -1).cos(), and the same of sin"
        )
    if not (apart or beside):
        raise AssertionError(
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
    wrong = [f"{name} is {found[name]}, expected {due[name]}" for name in due if found[name] != due[name]]
    assert not wrong, (
        f"site {site.index} ({site.path}): weights(site) has other shapes than the site's numbers of heads, key_dim, "
        f"value_dim and hidden_size give: {'; '.join(wrong)}. Rows are outputs, as nn.Linear stores them"
    )


def check_rope(site: AttentionSite, position: Any) -> None:
    """Fails unless the decoder passes the angles of a site that turns queries and keys."""
    __tracebackhide__ = True
    if site.has_rope:
        length = position[0].shape[1] if isinstance(position, tuple) else 0
        _check_position(position, site, f"site {site.index} ({site.path})", length)


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
    """Fails unless the site, which mixers are built from, and its weights speak of one attention."""
    __tracebackhide__ = True
    differ = disagreements(weights, site)
    assert not differ, (
        f"site {site.index} ({site.path}) has {'; '.join(differ)}: give sites() the same facts as weights(site), since "
        "mixers that keep a part of the attention are built from the site"
    )
