"""What a call of a model says of its tokens, read once where the call comes in, outside of any decoder.

A site sees what the decoder made of the arguments; what the caller said is lost there. So a hook reads it: where
packed documents begin, and whether the mask still fits what a cache holds. A call of one token says nothing new and
passes untouched, so that nothing of this is in a compiled decoding step.

Letters: B batch, T tokens of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from linearize.protocols import AttentionSite
from linearize.student.documents import BOUNDARIES, looks_across, segments
from linearize.student.state import RecurrentStateLayer, passed_cache

SEGMENTS = "linearize_segments"
"""Keyword under which the documents travel to the sites, so that a layer that is recomputed gets them too."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What a call says of its documents.

    Attributes:
        segments_BT: int64; it changes where a document begins.
        source: the arguments that said so.
        recomputes: whether layers will run again in the backward pass, with nothing but their own arguments.
    """

    segments_BT: Tensor
    source: str
    recomputes: bool

    def at(self, x_BTD: Tensor, keyword: Tensor | None, site: AttentionSite) -> Tensor:
        """The documents of a site's tokens, which its decoder passed on as ``keyword`` or not.

        Raises:
            ValueError: the site runs over other tokens than the model, or would not get them when it is recomputed.
        """
        where = f"site {site.index} ({site.path})"
        if self.segments_BT.shape != x_BTD.shape[:2]:
            raise ValueError(
                f"{self.source} tells where documents begin among {tuple(self.segments_BT.shape)} tokens, but {where} "
                f"runs over {tuple(x_BTD.shape[:2])}; pass one document a row"
            )
        if keyword is None and self.recomputes:
            raise ValueError(
                f"{self.source} tells where documents begin, but the decoder of {where} hands no keywords on, and a "
                "layer that is recomputed for the backward pass would not know of them; train without gradient "
                "checkpointing, or with one document a row"
            )
        return self.segments_BT


@dataclass(slots=True, weakref_slot=True)
class KeptAttention:
    """A hook of a teacher's attention: refuses a call that would look across documents."""

    site: AttentionSite
    documents: Documents | None = None

    def __call__(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments without the keyword that only sites understand."""
        documents = self.documents
        keyword = kwargs.pop(SEGMENTS, None)
        if documents is None:
            # A layer that is recomputed: its first run was looked at.
            return None if keyword is None else (args, kwargs)
        cache = passed_cache(kwargs)
        seen = 0 if cache is None else int(cache.get_seq_length(self.site.cache_index))
        implementation = str(getattr(getattr(attention, "config", None), "_attn_implementation", ""))
        if looks_across(documents.segments_BT, kwargs, seen, implementation):
            raise ValueError(
                f"{documents.source} tells where packed documents begin, but the softmax attention of site "
                f"{self.site.index} ({self.site.path}) would look from one into another, since the mask that its "
                "decoder made does not part them; pass position_ids that begin again together with use_cache=False "
                "and no attention_mask, or a four-dimensional attention_mask of blocks"
            )
        return args, kwargs


@dataclass(slots=True, weakref_slot=True)
class Entrance:
    """Hooks of a model, and of the decoders in it that a caller may call by themselves.

    Attributes:
        watched: sites and kept attentions, which get the documents of a call.
        sites: all of the model's attentions.
        config: the model's configuration.
        window: the smallest sliding window among the sites' attentions; None without one.
        inside: the module whose call is running and said something.
    """

    watched: list[Any]
    sites: Sequence[AttentionSite]
    config: Any
    window: int | None
    inside: nn.Module | None = field(default=None)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Reads the arguments of a call; the keywords with the documents added, or None: nothing to add."""
        if self.inside is not None or self._is_short(args, kwargs):
            return None
        if torch.compiler.is_compiling() and not self._may_say(args, kwargs):
            return None
        return self._read(module, args, kwargs)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Ends what ``enter`` began."""
        if self.inside is module:
            self.inside = None
            for one in self.watched:
                one.documents = None

    def _is_short(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        first = _first(args, kwargs)
        return first is None or first.shape[1] == 1

    def _has_other_states(self) -> bool:
        """Whether layers that are no sites keep a state of their own, as in a teacher that was a hybrid."""
        slots = {site.cache_index for site in self.sites}
        layers = DynamicCache(config=self.config.get_text_config(decoder=True)).layers
        return any(_is_recurrent(layer) for index, layer in enumerate(layers) if index not in slots)

    def _may_say(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        mask = kwargs.get("attention_mask")
        is_plain = mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)
        said = [kwargs.get(name) for name in ("position_ids", "seq_idx", *BOUNDARIES)] + [passed_cache(kwargs)]
        return len(args) > 1 or not is_plain or any(one is not None for one in said)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parameters = inspect.signature(module.forward).parameters
        inputs = dict(zip(parameters, args, strict=False)) | kwargs
        first = _first(args, kwargs)
        assert first is not None  # _is_short looked
        batch, tokens = first.shape[:2]
        cache = passed_cache(inputs)
        slots = [layer for layer in getattr(cache, "layers", ()) if isinstance(layer, RecurrentStateLayer)]
        seen = int(slots[0].progress.seen) if slots else 0
        for slot in slots:
            slot.stands_alone = cache is not None and len(slots) == len(cache.layers)
        if seen:
            check_history(cache, inputs.get("attention_mask"))
        found = segments(inputs, batch, tokens, seen=seen, window=self.window)
        if found is None:
            return None
        if self._has_other_states():
            raise ValueError(
                f"{found[1]} tells where packed documents begin, but layers of this model that were recurrent before "
                "it was converted go on from one document to the next; pass one document a row"
            )
        recomputes = module.training and torch.is_grad_enabled() and any(
            getattr(part, "gradient_checkpointing", False) for part in module.modules()
        )  # fmt: skip
        documents = Documents(*found, recomputes)
        self.inside = module
        for one in self.watched:
            one.documents = documents
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return (args, {**kwargs, SEGMENTS: documents.segments_BT}) if takes_any else None


def check_history(cache: Any, attention_mask: Any) -> None:
    """Refuses a mask that does not tell those tokens for pads that were pads when the states of a cache were written.

    Args:
        attention_mask: of the tokens so far and those to come, [B, S]; None: there are no pads. Others are not looked
            at.

    Raises:
        ValueError: they differ in number; names the rows. Or pads stand between words in a model that had recurrent
            layers before it was converted, which have read them.
    """
    layers = getattr(cache, "layers", ())
    slot = next((layer for layer in layers if isinstance(layer, RecurrentStateLayer)), None)
    seen = 0 if slot is None else int(slot.progress.seen)
    if slot is None or not seen:
        return
    real_B = slot.progress.real_B
    if attention_mask is None:
        said_B = torch.full_like(real_B, seen) if real_B is not None else None
    elif isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and attention_mask.shape[1] > seen:
        history_BS = attention_mask[:, :seen].bool()
        said_B = history_BS.sum(1)
        real_B = torch.full_like(said_B, seen) if real_B is None else real_B
        ends_B = history_BS.long().cumsum(1).ne(0) & ~history_BS
        if any(map(_is_recurrent, layers)) and bool(ends_B.any()):
            raise ValueError(
                "rows of this batch ended before others and were padded, and layers of this model that were recurrent "
                "before it was converted have read the pads; start from an empty cache, or generate row by row"
            )
    else:
        return
    if said_B is None or real_B is None or torch.equal(said_B, real_B.to(said_B.device)):
        return
    differ = [
        f"row {row}: {said} by the mask, {real} in the state"
        for row, (said, real) in enumerate(zip(said_B.tolist(), real_B.tolist(), strict=False))
        if said != real
    ]
    raise ValueError(
        f"of the {seen} tokens in the cache, the attention_mask counts others than the recurrent state has read "
        f"({'; '.join(differ[:4])}). Rows that ended before the others were padded, and pads are in no state: give the "
        "pads that follow an answer a 0 in the mask, and the token that ended it a 1; or start from an empty cache"
    )


def _is_recurrent(layer: Any) -> bool:
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def watch(model: nn.Module, sites: Sequence[AttentionSite], slots: Sequence[nn.Module]) -> None:
    """Hooks ``model`` and the decoders in it.

    Args:
        slots: the modules at the sites; each gets ``Documents``, or None, as its attribute ``documents``.
    """
    windows = [site.window for site in sites if site.window is not None]
    entrance = Entrance([*slots], sites, getattr(model, "config", None), min(windows, default=None))
    for slot in slots:
        attention: Any = slot.attention
        hook = KeptAttention(slot.site)  # type: ignore[arg-type]
        attention.register_forward_pre_hook(hook, with_kwargs=True)
        entrance.watched.append(hook)
    for module in _entrances(model, [site.path for site in sites]):
        module.register_forward_pre_hook(entrance.enter, with_kwargs=True)
        module.register_forward_hook(entrance.leave, always_call=True)


def _entrances(model: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """The model, and each module around all sites that is no list of layers."""
    common: list[str] = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1 or parts[0].isdigit():
            break
        common.append(parts[0])
    around = [model.get_submodule(".".join(common[:depth])) for depth in range(len(common) + 1)]
    return [module for module in around if not isinstance(module, (nn.ModuleList, nn.ModuleDict))]


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What has the call's tokens: ids or embeddings, [B, T, ...]."""
    for candidate in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(candidate, Tensor) and candidate.dim() > 1:
            return candidate
    return None
