"""A state at a fixed address, and caches of fixed size that hold it: what a compiled decoding step writes in place.

transformers compiles the step of ``generate()`` once every slot of the cache is of fixed size, and replays it as a
graph. Whatever such a step reads besides tensors is a constant of the graph, so the number of tokens is a tensor too;
all linear sites of a cache share it, and the last one of them moves it on.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticCache
from transformers.utils import is_torchdynamo_compiling

from linearize.student.site import LinearizedAttention, linearized_sites
from linearize.student.state import Progress, RecurrentStateLayer

KEEPS_ATTENTIONS_APART = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
"""Whether slots of fixed size are right beside states where a model's layers attend in several ways."""


class StaticStateLayer(RecurrentStateLayer):
    """One site's state in tensors that are allocated once and written in place.

    Args:
        max_cache_len: tokens for which the cache's masks have columns. The state itself has no such limit.
        progress: the cache's count of tokens.
        advances: whether this slot moves the count on; one of a cache does, that of its last linear site.
        stored: see ``RecurrentStateLayer``.
    """

    is_compileable = True

    def __init__(
        self,
        max_cache_len: int,
        progress: Progress,
        *,
        advances: bool,
        stored: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        super().__init__(stored)
        self.max_cache_len = max_cache_len
        self.progress = progress
        self.advances = advances
        self._is_empty = True

    @property
    def is_empty(self) -> bool:
        """Whether no token has been seen yet."""
        return self._is_empty

    def allocate(self, states: Mapping[str, Tensor]) -> None:
        """Takes tensors of these shapes and dtypes, or those of ``stored``, for good."""
        self._note_dtypes(states)
        # Strides of a state depend on the prompt's length; a graph is made for one layout.
        self.states = {
            name: state.detach().to(self.stored.get(name, state.dtype)).clone(memory_format=torch.contiguous_format)
            for name, state in states.items()
        }
        first = next(iter(self.states.values()))
        self.device, self.batch_size = first.device, first.shape[0]
        if self.progress.real_B is None:
            self.progress.seen = self.progress.seen.to(first.device)
            self.progress.real_B = torch.zeros(self.batch_size, dtype=torch.int64, device=first.device)
            _keep_address(self.progress.seen, self.progress.real_B)
        _keep_address(*self.states.values())
        self.is_initialized = True

    def put(self, num_tokens: int, states: Mapping[str, Tensor], valid_BT: Tensor | None = None) -> None:
        """Writes the state after ``num_tokens`` further tokens over the one before.

        Raises:
            RuntimeError: it has other shapes: another batch size than the cache was made for, or a mixer whose state
                grows.
        """
        if not self.is_initialized:
            self.allocate(states)
        for name, state in states.items():
            own = self.states[name]
            if own.shape != state.shape:
                raise RuntimeError(
                    f"a cache of fixed size holds '{name}' as {tuple(own.shape)}, but the mixer's state is "
                    f"{tuple(state.shape)} now; a cache serves one batch size: make another one for this batch"
                )
            own.copy_(state)
        if self.advances:
            assert self.progress.real_B is not None
            self.progress.real_B.add_(num_tokens if valid_BT is None else valid_BT.sum(1))
            self.progress.seen.add_(num_tokens)
        if self._is_empty:  # a compiled step would write it in Python after each token otherwise
            self._is_empty = False

    def get_seq_length(self) -> Any:
        """Tokens seen, pads included: 0, then a tensor."""
        return 0 if self._is_empty else self.progress.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask for ``query_length`` further tokens, and the first column's token.

        A prompt is read outside of any graph, so that its mask needs to be no larger than that of a growing cache.
        """
        if query_length > 1 and self.stands_alone and not is_torchdynamo_compiling():
            return query_length, int(self.progress.seen)
        return self.max_cache_len, 0

    def get_max_length(self) -> int:
        """Tokens for which masks have columns."""
        return self.max_cache_len

    def get_max_cache_shape(self) -> int:
        """The name of ``get_max_length`` before transformers 5.23."""
        return self.max_cache_len

    def reset(self) -> None:
        """Forgets everything; all tensors stay where they are."""
        for state in self.states.values():
            state.zero_()
        if self.progress.real_B is not None:
            self.progress.real_B.zero_()
        self.progress.seen.zero_()
        self._is_empty = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes the former row ``beam_idx[i]``."""
        rows = list(self.states.values())
        if self.advances and self.progress.real_B is not None:
            rows.append(self.progress.real_B)
        for tensor in rows:
            tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Refuses: the batch has one size.

        Raises:
            RuntimeError: always.
        """
        raise _fixed_batch("batch_select_indices")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refuses: the batch has one size.

        Raises:
            RuntimeError: always.
        """
        raise _fixed_batch("batch_repeat_interleave")

    def offload(self) -> NoReturn:
        """Refuses: a state that moves has no fixed address.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "an offloaded cache of fixed size was asked for, but a state that moves has no fixed address; it is small: "
            "use cache_implementation='static', or the default cache"
        )


def _fixed_batch(method: str) -> RuntimeError:
    return RuntimeError(
        f"{method}() would change the number of rows of a cache of fixed size; use the default cache, which follows"
    )


def _keep_address(*tensors: Tensor) -> None:
    # Without the mark a captured graph would be skipped, since it changes its inputs.
    if not is_torchdynamo_compiling():
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)


def make_states_static(model: nn.Module, cache: Cache, max_length: int) -> None:
    """Puts a ``StaticStateLayer`` into the slot of each linear site of a cache that is still empty."""
    sites = linear_sites(model)
    progress = Progress(torch.zeros((), dtype=torch.int64))
    for site in sites:
        slot = StaticStateLayer(max_length, progress, advances=site is sites[-1], stored=site.stored_dtypes())
        cache.layers[site.site.cache_index] = slot
    for layer in cache.layers:
        if isinstance(layer, StaticStateLayer):
            layer.stands_alone = len(sites) == len(cache.layers)


def linear_sites(model: nn.Module) -> list[LinearizedAttention]:
    """The sites at which a mixer runs now, in execution order."""
    return [slot for slot in linearized_sites(model) if slot.linear and not slot.runs_teacher]


def is_all_linear(model: Any) -> bool:
    """Whether a mixer runs in every slot of the model's cache, so that nothing in it grows."""
    slots = {slot.site.cache_index for slot in linear_sites(model)}
    return slots == set(range(model.config.get_text_config(decoder=True).num_hidden_layers))


def refuse_mixed_attentions(model: Any) -> None:
    """Fails where this release of transformers would answer otherwise with a cache of fixed size.

    Raises:
        ValueError: it is too old for a model that keeps attention and whose layers attend in several ways.
    """
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())
    if not (KEEPS_ATTENTIONS_APART or is_all_linear(model) or len(kinds) < 2):
        raise ValueError(
            "a cache of fixed size was asked for, and this student keeps attention in a model whose layers attend in "
            f"several ways ({', '.join(sorted(kinds))}); under transformers {transformers.__version__} its answers may "
            'differ. Install transformers 5.23 or newer, or leave cache_implementation="static" and static_cache() out'
        )


@torch.no_grad()
def static_cache(model: Any, batch_size: int, max_length: int) -> Cache:
    """A cache of fixed size for a student, to be passed to it as its cache; a compiled step can write to it.

    The states of linear sites are allocated at once, keys and values of kept ones with the first prompt. ``generate()``
    makes such a cache by itself with ``cache_implementation="static"``; one that is passed in can be kept for a next
    turn, or used again after ``reset()``.

    Args:
        batch_size: rows; with beams or several answers each, all of them.
        max_length: most tokens, prompt and answer together.

    Raises:
        ValueError: the model has no linear site, a size is not positive, or this release of transformers cannot keep
            what the model keeps of its attention.
    """
    sites = linear_sites(model)
    if not sites:
        raise ValueError(
            f"this {type(model).__name__} has no linear site; make a transformers.StaticCache for a model of attention"
        )
    if batch_size < 1 or max_length < 1:
        raise ValueError(f"batch_size = {batch_size} and max_length = {max_length}: both must be at least 1")
    refuse_mixed_attentions(model)
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=max_length)
    make_states_static(model, cache, max_length)
    for site in sites:
        parameter = next(site.o_proj.parameters())
        empty = getattr(site.mixer, "empty_state", None)
        if empty is not None:
            states = empty(batch_size, device=parameter.device, dtype=parameter.dtype)
            cache.layers[site.site.cache_index].allocate(states)
    return cache
