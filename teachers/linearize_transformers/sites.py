"""The attention sites of a model, found in its modules; or the reason why it cannot be converted.

Nothing is skipped silently: each decoder layer holds an attention that is understood to its last tensor, or a mixer
that is known to be none, or the model is refused with what was found.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from linearize.errors import CheckpointError
from linearize.protocols import AttentionSite
from linearize.student.state import CACHE_NAME
from linearize_transformers.attention import (
    FORMS,
    Form,
    HeadShape,
    find_form,
    fits,
    head_shape,
    unclaimed_tensors,
)
from linearize_transformers.prefix import PREFIX_MODELS
from linearize_transformers.probe import NotUnderstood, Probed, probe

ATTENTION_NAMES = ("self_attn", "attention", "attn")
OTHER_MIXERS = ("linear_attn", "conv", "short_conv", "mamba", "cross_attn")
"""What stands in a decoder layer in the place of softmax self-attention: linear already, or reading other tokens."""

LINEAR_LAYER = "linear_attention"
"""What a configuration calls a layer that is linear already."""
NEXT = (
    "Take another checkpoint (docs/teachers.md lists what was tried), or write a teacher plug-in for this one: "
    "`linearize new teacher NAME` begins it, docs/write_a_teacher.md goes on."
)

CACHE_ARGUMENTS = (CACHE_NAME, "layer_past")
REQUIRED_ARGUMENTS = frozenset(
    {"hidden_states", "attention_mask", "position_embeddings", "position_ids", "shared_kv_states"}
)
"""Arguments that a mixer can do without: a layer that would read something from shared_kv_states is refused."""

REFUSALS: tuple[tuple[str, str], ...] = (
    ("kv_b_proj", "multi-head latent attention (MLA): keys and values are expanded from a shared latent, so no "
     "projection of the hidden state gives k and v to seed from"),
    ("is_kv_shared_layer", "keys and values that later layers read instead of their own (cross-layer KV sharing): a "
     "linear site leaves none behind for them"),
    ("sinks", "attention sinks: learned logits beside the keys, which no mixer stands in for yet"),
    ("indexer", "a learned choice of keys (sparse attention): its indexer is trained and cached with the attention"),
)  # fmt: skip
"""Attribute of the attention module -> why it cannot become a site."""


@dataclass(frozen=True, slots=True)
class FoundSite:
    """A site, how its module stores it, and what the module was seen to do; None where it could not be run alone."""

    site: AttentionSite
    form: Form
    shape: HeadShape
    probed: Probed | None = None


def find_sites(model: nn.Module) -> list[FoundSite]:
    """Every softmax self-attention of the model's decoder, in execution order.

    Args:
        model: may be on the meta device; no value is read.

    Raises:
        CheckpointError: the decoder or one of its attentions is of no known form, or cannot be converted; names the
            module, what was found and why that does not do.
    """
    config: Any = model.config
    text_config = config.get_text_config(decoder=True)
    layer_types = list(getattr(text_config, "layer_types", None) or [])
    path, layers = _decoder_layers(model)
    layer_parent = model.get_submodule(path.rpartition(".")[0])
    has_rotary = any("rotary" in type(module).__name__.lower() for module in layer_parent.modules())
    found: list[FoundSite] = []
    for number, layer in enumerate(layers):
        name = next((name for name in ATTENTION_NAMES if getattr(layer, name, None) is not None), None)
        if name is None:
            if not any(getattr(layer, other, None) is not None for other in OTHER_MIXERS):
                raise _refusal(
                    f"{path}.{number} is a {type(layer).__name__} with {_children(layer)}; expected an attention under "
                    f"one of the names {', '.join(ATTENTION_NAMES)}, or a mixer that is none "
                    f"({', '.join(OTHER_MIXERS)})"
                )
            continue
        if layer_types[number : number + 1] == [LINEAR_LAYER] and _reads_no_position(getattr(layer, name)):
            continue
        beside = next((other for other in OTHER_MIXERS if getattr(layer, other, None) is not None), None)
        if beside is not None:
            raise _refusal(
                f"{path}.{number} ({type(layer).__name__}) has both '{name}' and '{beside}', which work side by side "
                "and share one slot of the cache: a linear site would take it from both"
            )
        where = _Place(path=f"{path}.{number}.{name}", layer=number, num_layers=len(layers), index=len(found))
        has_prefix = config.model_type in PREFIX_MODELS
        found.append(_site(getattr(layer, name), where, text_config, has_prefix=has_prefix, has_rotary=has_rotary))
    if not found:
        raise _refusal(
            f"none of the {len(layers)} layers of this '{config.model_type}' model has softmax self-attention "
            f"({path}.0 has {_children(layers[0])}): there is nothing to make linear"
        )
    return found


def _decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is None:
        raise _refusal(f"{type(model).__name__} has no get_decoder(): its text decoder cannot be found")
    root = next(name for name, module in model.named_modules() if module is decoder)
    lists = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and any(_is_decoder_layer(child) for child in module)
    ]
    # Some decoders hold an image tokenizer or encoders: models of their own, whose layers are not the decoder's.
    nested = tuple(f"{name}." for name, one in decoder.named_modules() if name and isinstance(one, PreTrainedModel))
    lists = [one for one in lists if not one[0].startswith(nested)] or lists
    who = f"the decoder of {type(model).__name__} ({root or 'the model itself'}, a {type(decoder).__name__})"
    if not lists:
        raise _refusal(
            f"{who} has no layers with softmax attention under one of the names {', '.join(ATTENTION_NAMES)}: there is "
            f"nothing to make linear, or it is called otherwise; the decoder holds {_children(decoder)}"
        )
    if len(lists) > 1:
        raise _refusal(f"{who} has {len(lists)} lists of layers, {', '.join(name for name, _ in lists)}; expected one")
    name, layers = lists[0]
    return ".".join(part for part in (root, name) if part), layers


def _is_decoder_layer(module: nn.Module) -> bool:
    return any(getattr(module, name, None) is not None for name in (*ATTENTION_NAMES, *OTHER_MIXERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    path: str
    layer: int
    num_layers: int
    index: int


def _site(attention: nn.Module, place: _Place, config: Any, *, has_prefix: bool, has_rotary: bool) -> FoundSite:
    path = place.path
    problems = list(_problems(attention, has_prefix=has_prefix))
    form = find_form(attention)
    if problems or form is None:
        why = "; ".join(problems) or (
            f"its children are {_children(attention)}, while the known forms are "
            + "; ".join(f"{', '.join(known.projections)} and {known.output}" for known in FORMS)
        )
        raise _refusal(f"{path} ({type(attention).__name__}) cannot become a linear site: {why}")
    unclaimed = unclaimed_tensors(attention, form)
    if unclaimed:
        raise _refusal(
            f"{path} ({type(attention).__name__}) cannot become a linear site: beside its projections and norms it has "
            f"{', '.join(unclaimed)}, and what those do is not known"
        )
    shape = head_shape(attention, form, config)
    if not fits(attention, form, shape):
        raise _refusal(
            f"{path} ({type(attention).__name__}) cannot become a linear site: its projections do not have the sizes "
            f"of {shape.num_heads} query and {shape.num_key_value_heads} key-value heads of widths {shape.key_dim} and "
            f"{shape.value_dim}"
        )
    try:
        probed = probe(attention, form, shape)
    except NotUnderstood as error:
        raise _refusal(f"{path} ({type(attention).__name__}) cannot become a linear site: {error}") from error
    parameters = inspect.signature(attention.forward).parameters
    site = AttentionSite(
        index=place.index,
        path=path,
        tower="language",
        layer=place.layer,
        num_layers=place.num_layers,
        cache_index=int(getattr(attention, "layer_idx", place.layer)),
        hidden_size=int(getattr(attention, form.projections[0]).in_features),
        num_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        key_dim=shape.key_dim,
        value_dim=shape.value_dim,
        output_projection=form.output,
        has_rope=_has_rope(probed, parameters, has_rotary=has_rotary),
        rope_style="interleaved" if probed is not None and probed.turn == "interleaved" else "half",
        qkv_clip=None if probed is None else probed.clip,
    )
    return FoundSite(site, form, shape, probed)


def _has_rope(probed: Probed | None, parameters: Collection[str], *, has_rotary: bool) -> bool:
    """Whether the attention turns queries and keys; one that can do without positions may get none from its decoder."""
    if probed is None:
        return "position_embeddings" in parameters
    return probed.turn != "none" and (has_rotary or not probed.goes_without)


def _problems(attention: nn.Module, *, has_prefix: bool) -> Iterator[str]:
    for attribute, reason in REFUSALS:
        found = getattr(attention, attribute, None)
        if found is not None and found is not False:
            yield reason
    if getattr(attention, "is_causal", True) is False and not has_prefix:
        yield "it is bidirectional (is_causal is False), and a recurrence reads from left to right"
    parameters = inspect.signature(attention.forward).parameters
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    if "hidden_states" not in parameters or not any(name in parameters for name in CACHE_ARGUMENTS):
        yield f"its forward takes {', '.join(parameters)}; expected hidden_states and {CACHE_NAME}"
    elif unknown := sorted(required - REQUIRED_ARGUMENTS):
        yield f"its forward requires {', '.join(unknown)}, which a mixer knows nothing of"


def _reads_no_position(attention: nn.Module) -> bool:
    """True of delta rules that stand under an attention's name (Kimi Linear); False of what turns queries and keys."""
    return "position_embeddings" not in inspect.signature(attention.forward).parameters


def _refusal(why: str) -> CheckpointError:
    return CheckpointError(f"{why}. {NEXT}")


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "no modules"
