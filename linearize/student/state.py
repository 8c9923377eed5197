"""The recurrent state of linear sites, kept in transformers' Cache so that ``generate()`` works unchanged.

transformers' own LinearAttentionLayer is not used: a cache of such layers alone cannot tell its length, which most
decoder bodies ask for, it loses the state of mixers without a convolution, and it lacks ``batch_repeat_interleave``.
The slot of a linear site is therefore swapped for a ``RecurrentStateLayer`` when the site first runs; the model's
configuration keeps the layer types of its teacher. Its ``state_dtype`` says in what memories are kept between calls; a
mixer gets its state back in the dtypes that it gave it.

Letters: B batch, T tokens of this call, S tokens that the attention mask covers, and S' those that it has rows for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

STATE_DTYPES = ("float32", "bfloat16")
"""What a configuration's ``state_dtype`` may be; the first one is that of a configuration without it."""

CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""What the installed transformers calls the cache, in a model's arguments and in its output; renamed in 5.24."""


@dataclass(slots=True)
class Progress:
    """How many tokens a slot has seen.

    Attributes:
        seen: pads included; a number, or in a cache of fixed size a tensor of no dimension.
        real_B: those of each row that were no pads, int64; None where there was no pad yet.
    """

    seen: Any = 0
    real_B: Tensor | None = None


class RecurrentStateLayer(CacheLayerMixin):
    """One site's state: named tensors, batch first, whose size does not depend on the tokens seen.

    Each has the dtype that its mixer gave it (memories fp32, inputs of a convolution the model's, counts int64) or that
    ``stored`` names, so the slot as a whole has none.

    It counts every token, pads included, because decoder bodies derive positions and mask sizes from the first slot
    that tells its length, and masks have a column for each pad. Those that are no pads it counts by row too: pads that
    were never written cannot become words later.

    Args:
        stored: tensors that are kept in another dtype than their mixer gives them.

    Attributes:
        states: the mixer's state, as it is kept.
        progress: the tokens so far.
        stands_alone: whether no slot of its cache holds keys, so that nobody needs a mask over the tokens before.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, stored: Mapping[str, torch.dtype] | None = None) -> None:
        super().__init__()
        self.stored = dict(stored or {})
        self._given: dict[str, torch.dtype] = {}
        self.keys = self.values = torch.empty(0)  # there are none; Mllama's decoder counts those of every slot
        self.states: dict[str, Tensor] = {}
        self.progress = Progress()
        self.stands_alone = False
        self.device: torch.device | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no token has been seen yet."""
        return not self.progress.seen

    def read(self) -> dict[str, Tensor] | None:
        """The state in the dtypes that its mixer gave it; None before the first token."""
        if self.is_empty:
            return None
        return {name: state.to(self._given.get(name, state.dtype)) for name, state in self.states.items()}

    def put(self, num_tokens: int, states: Mapping[str, Tensor], valid_BT: Tensor | None = None) -> None:
        """Replaces the state by the one after ``num_tokens`` further tokens, of which ``valid_BT`` are no pads."""
        if valid_BT is not None:
            before = self.progress.seen if self.progress.real_B is None else self.progress.real_B
            self.progress.real_B = valid_BT.sum(1) + before
        elif self.progress.real_B is not None:
            self.progress.real_B = self.progress.real_B + num_tokens
        if not self._given:
            self._note_dtypes(states)
        self.states = {
            name: _alone_in_memory(state.to(self.stored.get(name, state.dtype))) for name, state in states.items()
        }
        self.progress.seen += num_tokens
        self.is_initialized = True
        for tensor in self.states.values():
            self.device = tensor.device

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the mixer makes its first state itself."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses keys and values: an attention tried to go on where a mixer had begun.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "an attention tried to append to a cache slot that holds a mixer's state after "
            f"{int(self.progress.seen)} tokens; start from an empty cache when the route of a model changes"
        )

    def get_seq_length(self) -> Any:
        """Tokens seen, pads included."""
        return self.progress.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a mask for ``query_length`` further tokens has, and the first column's token."""
        seen = self.progress.seen
        return (query_length, seen) if self.stands_alone else (seen + query_length, 0)

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of ``get_max_length`` before transformers 5.23."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes the former row ``beam_idx[i]``."""
        self._map(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows that ``indices`` selects: numbers, or a bool mask."""
        self._map(lambda state: state[indices.to(state.device), ...])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes ``repeats`` neighbouring rows."""
        self._map(lambda state: state.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forgets everything."""
        self.states = {}
        self.progress = Progress()
        self.is_initialized = False

    def offload(self) -> None:
        """Moves the state to the CPU."""
        self._map(lambda state: state.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Moves the state back to where the mixer made it."""
        self._map(lambda state: state.to(self.device, non_blocking=True))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuses: a recurrence cannot be run backwards.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"crop({tokens_to_remove}) asks a recurrent state to forget its last tokens, which it cannot; "
            "generate without an assistant model or prompt lookup"
        )

    def _note_dtypes(self, states: Mapping[str, Tensor]) -> None:
        self._given = {name: states[name].dtype for name in self.stored}

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self.states = {name: change(state) for name, state in self.states.items()}
        if self.progress.real_B is not None:
            self.progress.real_B = change(self.progress.real_B)


def passed_cache(kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a model or an attention, whatever its keyword is; None where none is passed.

    Releases of transformers and its models differ in that name (``cache``, ``past_key_values``, ``layer_past``), and a
    student is loaded under other releases than it was saved with.

    Raises:
        ValueError: there are two, so it cannot be told which one the attention would use.
    """
    found = {name: value for name, value in kwargs.items() if isinstance(value, Cache)}
    caches = list(found.values())
    if any(cache is not caches[0] for cache in caches):
        raise ValueError(
            f"got {len(found)} caches, as {', '.join(found)}; a model keeps its state in one: pass one of them"
        )
    return caches[0] if caches else None


def dtype_name(dtype: Any) -> Any:
    """What a configuration calls a dtype: "bfloat16" for torch.bfloat16; anything else as it is."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype


def stored_dtypes(mixer: Any, config: Any) -> dict[str, torch.dtype]:
    """The tensors of a mixer's state that a model with this configuration keeps in another dtype than the mixer gives.

    They are its memories: what is float32 where the model is bfloat16. Counts, angles in float64, and what has the
    model's own dtype, such as inputs of a convolution, stay as they are.

    Raises:
        ValueError: the configuration's ``state_dtype`` is none of ``STATE_DTYPES``, or the mixer tells no dtypes.
    """
    name = dtype_name(getattr(config, "state_dtype", STATE_DTYPES[0]))
    if name not in STATE_DTYPES:
        raise ValueError(
            f"the configuration's state_dtype is {name!r}; expected {' or '.join(map(repr, STATE_DTYPES))}"
        )
    if name == STATE_DTYPES[0]:
        return {}
    empty = getattr(mixer, "empty_state", None)
    if empty is None:
        raise ValueError(
            f"state_dtype = {name!r} needs to know which tensors of a state are memories, and a {type(mixer).__name__} "
            "has no empty_state() that tells; define it, as linearize.protocols.Mixer says, or use 'float32'"
        )
    states = empty(1, device="meta", dtype=torch.bfloat16)
    return {key: getattr(torch, name) for key, state in states.items() if state.dtype == torch.float32}


def state_layer(
    cache: Cache, index: int, make: Callable[[], RecurrentStateLayer] = RecurrentStateLayer
) -> RecurrentStateLayer:
    """The recurrent slot ``index`` of ``cache``; an untouched slot of another kind is replaced by what ``make`` gives.

    Raises:
        RuntimeError: the slot already holds keys and values, has a static size, or does not exist.
    """
    while len(cache.layers) <= index:
        if cache.layer_class_to_replicate is None:
            raise RuntimeError(
                f"a linear site wants cache slot {index}, but the cache was made with {len(cache.layers)} slots and "
                "does not grow; make it with DynamicCache() or from a configuration that counts every layer"
            )
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, RecurrentStateLayer):
        return layer
    if isinstance(layer, StaticLayer):
        raise RuntimeError(
            f"cache slot {index} is a {type(layer).__name__}, which holds keys and values, but its site is linear; "
            "make a cache of fixed size with linearize.static_cache(model, batch_size, max_length), or let generate() "
            "make it with cache_implementation='static'"
        )
    if layer.is_initialized and layer.get_seq_length() > 0:
        raise RuntimeError(
            f"cache slot {index} holds the keys and values of {layer.get_seq_length()} tokens that no mixer has seen; "
            "start from an empty cache when the route of a model changes"
        )
    made = cache.layers[index] = make()
    return made


def token_validity(attention_mask: Any, num_tokens: int, seen: int | Tensor) -> Tensor | None:
    """Which tokens of this call are real: bool [B, T], or None where all are.

    Args:
        attention_mask: None, [B, S] (nonzero: real), or [B, 1, S', S] bool (True: may attend) or float (added to the
            scores); a token of a four-dimensional mask is real if it may attend to itself. B may be 1.
        num_tokens: T.
        seen: tokens before this call, a number or a tensor of none. Columns are counted from here, not from the right:
            a mask may be wider than the tokens so far. Where it covers fewer than those (a sliding window), its last T
            columns are this call's.

    Raises:
        ValueError: a mask of another kind, or one with fewer than T columns.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() not in (2, 4):
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else ""
        raise ValueError(
            f"a linear site got an attention mask of type {type(attention_mask).__name__} {shape}; it reads [B, S] and "
            "[B, 1, T, S] tensors: choose the attention implementation sdpa, eager or flash_attention_2"
        )
    surplus = attention_mask.shape[-1] - num_tokens
    if surplus < 0:
        raise ValueError(f"the attention mask covers {attention_mask.shape[-1]} tokens, but this call has {num_tokens}")
    if attention_mask.dim() == 2:
        return _columns(attention_mask, num_tokens, seen).bool()
    own = own_columns(attention_mask[:, 0, -num_tokens:], num_tokens, seen)
    return own if own.dtype == torch.bool else own >= 0


def own_columns(mask_BTS: Tensor, num_tokens: int, seen: int | Tensor) -> Tensor:
    """What a mask says of each token of this call and itself: [B, T]."""
    if not isinstance(seen, Tensor) or mask_BTS.shape[-1] == num_tokens:
        return _columns(mask_BTS, num_tokens, seen).diagonal(dim1=-2, dim2=-1)
    at_T = _positions(mask_BTS, num_tokens, seen)
    return mask_BTS.gather(-1, at_T[None, :, None].expand(len(mask_BTS), -1, 1)).squeeze(-1)


def _columns(mask_S: Tensor, num_tokens: int, seen: int | Tensor) -> Tensor:
    """The columns of this call's tokens, of a mask whose last dimension may cover more."""
    surplus = mask_S.shape[-1] - num_tokens
    if surplus and isinstance(seen, Tensor):
        return mask_S.index_select(-1, _positions(mask_S, num_tokens, seen))
    first = min(int(seen), surplus) if surplus else 0
    return mask_S[..., first : first + num_tokens]


def _positions(mask_S: Tensor, num_tokens: int, seen: Tensor) -> Tensor:
    first = seen.to(mask_S.device).clamp(max=mask_S.shape[-1] - num_tokens)
    return first + torch.arange(num_tokens, device=mask_S.device)


def _alone_in_memory(state: Tensor) -> Tensor:
    """The state, or a copy where it is a view of something much larger, such as the last of all a prompt's tokens."""
    own_bytes = state.numel() * state.element_size()
    return state.clone() if state.untyped_storage().nbytes() > 2 * own_bytes else state
