"""Where packed documents begin inside one call of a model.

transformers has several ways to say that documents stand side by side in a row: positions that begin again, bounds
for Flash Attention, numbers for Mamba, and masks. Which of them a decoder heeds depends on its attention, a cache and
the other arguments. Here all are read, with one meaning.

Letters: B batch, T tokens of the call, S columns of a mask, A axes of a position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.student.state import passed_cache, token_validity

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")


def segments(
    inputs: Mapping[str, Any], batch: int, tokens: int, *, seen: int = 0, window: int | None = None
) -> tuple[Tensor, str] | None:
    """Which document each token is of, int64 [B, T], and the arguments that say so; None: all of a row are of one.

    Args:
        inputs: the keyword arguments of a model's forward.
        seen: tokens before this call.
        window: the smallest sliding window among the model's attentions, in tokens; None without one.

    Raises:
        ValueError: two arguments contradict each other, or one is of a kind that no recurrence can follow.
    """
    mask = _mask(inputs.get("attention_mask"))
    valid_BT = None if mask is None else token_validity(mask, tokens, seen)
    if valid_BT is None:
        device = next(value.device for value in inputs.values() if isinstance(value, Tensor))
        valid_BT = torch.ones(batch, tokens, dtype=torch.bool, device=device)
    row = _Row(valid_BT.expand(batch, -1))
    said: dict[str, Tensor | None] = {}
    if mask is not None:
        said["attention_mask"] = _of_mask(mask, row, tokens, seen, window)
    if inputs.get("position_ids") is not None:
        packs_alone = inputs.get("attention_mask") is None and passed_cache(inputs) is None
        said["position_ids"] = _of_positions(inputs["position_ids"], row, packs_alone)
    said |= {name: _of_boundaries(inputs[name], row, name) for name in BOUNDARIES if inputs.get(name) is not None}
    if inputs.get("seq_idx") is not None:
        said["seq_idx"] = row.changes(_rows(inputs["seq_idx"], row, "seq_idx"))
    starts = {name: start_BT for name, start_BT in said.items() if start_BT is not None and bool(start_BT.any())}
    if not starts:
        return None
    (first, start_BT), *others = starts.items()
    for name, other_BT in others:
        if not torch.equal(start_BT, other_BT):
            raise ValueError(
                f"{first} says that documents begin at tokens {_listed(start_BT)} (row, token), {name} says "
                f"{_listed(other_BT)}; pass arguments that agree, or one of them alone"
            )
    return start_BT.cumsum(1), " and ".join(starts)


class _Row:
    """The tokens of each row that are no pads, and which of them comes before each."""

    def __init__(self, valid_BT: Tensor) -> None:
        self.valid_BT = valid_BT
        at_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
        latest_BT = torch.where(valid_BT, at_T, -1).cummax(1).values
        self.before_BT = F.pad(latest_BT[:, :-1], (1, 0), value=-1)
        self.goes_on_BT = valid_BT & (self.before_BT >= 0)
        self.first_B1 = valid_BT.to(torch.uint8).argmax(1, keepdim=True)

    def before(self, value_BT: Tensor) -> Tensor:
        """The value of the token before each."""
        return value_BT.gather(1, self.before_BT.clamp(min=0))

    def changes(self, value_BT: Tensor) -> Tensor:
        """Where a token has another value than the one before it."""
        return self.goes_on_BT & (value_BT != self.before(value_BT))


def _mask(mask: Any) -> Tensor | None:
    """The mask that speaks of documents; of several, that of full attention."""
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    if mask is None or (isinstance(mask, Tensor) and mask.dim() in (2, 4)):
        return mask
    shape = tuple(getattr(mask, "shape", ()))
    raise ValueError(
        f"the model got an attention_mask of type {type(mask).__name__} {shape}; a linear site reads [B, S] and "
        "[B, 1, T, S] tensors: pass one of those and choose the attention implementation sdpa, eager or "
        "flash_attention_2"
    )


def _of_mask(mask: Tensor, row: _Row, tokens: int, seen: int, window: int | None) -> Tensor | None:
    """Numbers above 1 in a mask of two dimensions, or tokens of a square one that do not see the one before them."""
    first = min(seen, mask.shape[-1] - tokens)
    if mask.dim() == 2:
        if mask.dtype == torch.bool or not bool((mask > 1).any()):
            return None
        return row.changes(mask[:, first : first + tokens].expand(row.valid_BT.shape))
    may_BTS = mask[:, 0, -tokens:] if mask.dtype == torch.bool else mask[:, 0, -tokens:] >= 0
    may_BTS = may_BTS.expand(len(row.valid_BT), -1, -1)
    sees_BT = may_BTS.gather(2, (row.before_BT.clamp(min=0) + first).unsqueeze(-1)).squeeze(-1)
    start_BT = row.goes_on_BT & ~sees_BT
    if window is not None:
        at_T = torch.arange(tokens, device=start_BT.device)
        start_BT &= at_T - row.before_BT < window
    earlier_TS = torch.ones(may_BTS.shape[1:], dtype=torch.bool, device=start_BT.device).tril(first - 1)
    mixed_BT = start_BT & (may_BTS & earlier_TS).any(-1)
    if bool(mixed_BT.any()):
        raise ValueError(
            f"the attention_mask hides from tokens {_listed(mixed_BT)} (row, token) the token before them, but not all "
            "before that; a linear site can forget all that it read, or nothing"
        )
    return start_BT


def _of_positions(position_ids: Tensor, row: _Row, packs_alone: bool) -> Tensor:
    """Where positions begin again.

    Without a mask and a cache, transformers begins a document wherever a position is not the next one. Else it takes
    no notice of them; then a document begins where they go back, or stand where the row began.
    Rotary embeddings with axes for height and width repeat positions and go back within an image, but never to where
    the row began on all axes at once. Of four axes, the first is that of the text.
    """
    if position_ids.dim() == 3 and position_ids.shape[0] == 4:
        position_ids = position_ids[0]
    if position_ids.dim() == 3:
        axes_ABT = position_ids.expand(-1, *row.valid_BT.shape)
        began_AB1 = axes_ABT.gather(2, row.first_B1.expand(len(axes_ABT), -1, -1))
        return row.goes_on_BT & (axes_ABT <= began_AB1).all(0)
    position_BT = _rows(position_ids, row, "position_ids")
    step_BT = position_BT - row.before(position_BT)
    if packs_alone:
        return row.goes_on_BT & (step_BT != 1)
    stands_BT = (step_BT == 0) & (position_BT <= position_BT.gather(1, row.first_B1))
    return row.goes_on_BT & ((step_BT < 0) | stands_BT)


def _of_boundaries(boundaries: Tensor, row: _Row, name: str) -> Tensor:
    """Where the rows, laid end to end, pass a boundary."""
    size = row.valid_BT.numel()
    if boundaries.dim() != 1 or int(boundaries[0]) != 0 or int(boundaries[-1]) > size:
        raise ValueError(
            f"{name} is {boundaries.tolist()}; expected one dimension, from 0 to no more than the {size} tokens of the "
            "batch"
        )
    number_P = torch.zeros(size + 1, dtype=torch.int64, device=row.valid_BT.device)
    number_P[boundaries.to(number_P.device).long()] = 1
    number_BT = number_P[:size].cumsum(0).view(row.valid_BT.shape)
    return row.changes(number_BT)


def _rows(value: Tensor, row: _Row, name: str) -> Tensor:
    batch, tokens = row.valid_BT.shape
    if value.dim() == 1:
        value = value.unsqueeze(0)
    if value.dim() != 2 or value.shape[0] not in (1, batch) or value.shape[1] != tokens:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected ({batch} or 1, {tokens})")
    return value.expand(batch, -1)


def _listed(start_BT: Tensor) -> str:
    places = [f"({row}, {token})" for row, token in start_BT.nonzero().tolist()]
    return ", ".join(places[:8]) + (", ..." if len(places) > 8 else "")


def looks_across(segments_BT: Tensor, call: Mapping[str, Any], seen: int, implementation: str) -> bool:
    """Whether an attention that is called with these keywords lets a token see one of another document.

    Args:
        seen: tokens in its cache.
        implementation: the name of the attention implementation.
    """
    mask, position_ids = call.get("attention_mask"), call.get("position_ids")
    batch, tokens = segments_BT.shape
    if isinstance(mask, Tensor) and mask.dim() == 4:
        may_BTS = (mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0).expand(batch, -1, -1)
        first = min(seen, mask.shape[-1] - tokens)
        before_BT = may_BTS[..., :first].any(-1) & (segments_BT > 0)
        other_BTT = segments_BT.unsqueeze(2) != segments_BT.unsqueeze(1)
        return bool(before_BT.any() | (may_BTS[..., first : first + tokens] & other_BTT).any())
    if mask is not None or "flash" not in implementation:
        return True
    if all(call.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")):
        return False
    if position_ids is None or batch > 1:
        return True
    falls_BT = F.pad(position_ids[:, 1:] < position_ids[:, :-1], (1, 0))
    return not torch.equal(falls_BT.cumsum(1), segments_BT)
