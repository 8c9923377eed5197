"""Tokens as they come out of a sliding window: each call gets what lies a fixed number of tokens back.

Pads take no place, and documents do not meet: within the first tokens of each, nothing has come out yet.
Letters: B batch, T tokens, M heads, X width, W tokens of the delay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.protocols import State

LATE, COUNT = "late", "late_count"


def delayed(
    x_BTMX: Tensor, tokens: int, *, valid_BT: Tensor | None, segments_BT: Tensor | None, state: State | None
) -> tuple[Tensor, Tensor, State]:
    """x as it was W = ``tokens`` tokens before each, [B, T, M, X]; whether there was one, bool [B, T]; and the state.

    The state is "late" [B, W, M, X], the last tokens, and "late_count" [B] int64, how many the last document has. Where
    there was none, x may hold anything finite. At a pad there is none.
    """
    batch, length, heads, width = x_BTMX.shape
    if state is None:
        state = empty_delay(batch, tokens, heads, width, device=x_BTMX.device, dtype=x_BTMX.dtype)
    kept, before_B = state[LATE], state[COUNT]
    together = torch.cat([kept, x_BTMX], 1)
    if valid_BT is None:
        valid_BT = torch.ones(batch, length, dtype=torch.bool, device=x_BTMX.device)
        late, last = together[:, :length], together[:, length:]
    elif length == 1:
        late, last = together[:, :1], torch.where(valid_BT[..., None, None], together[:, 1:], together[:, :-1])
    else:
        late, last = _picked(together, tokens, valid_BT)
    rank_BT = valid_BT.cumsum(1) - 1
    if segments_BT is None:
        older_BT = rank_BT + before_B.unsqueeze(1)
        count_B = before_B + valid_BT.sum(1)
    else:
        begins_BT = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0))
        document_BT = begins_BT.cumsum(1)
        # Tokens of this call before each document; they grow, so the latest is the largest.
        before_BT = torch.where(begins_BT, rank_BT + 1 - valid_BT.long(), 0).cummax(1).values
        older_BT = rank_BT - before_BT + torch.where(document_BT == 0, before_B.unsqueeze(1), 0)
        in_last_BT = valid_BT & (document_BT == document_BT[:, -1:])
        count_B = in_last_BT.sum(1) + torch.where(document_BT[:, -1] == 0, before_B, 0)
    return late, valid_BT & (older_BT >= tokens), {LATE: last, COUNT: count_B}


def empty_delay(
    batch_size: int, tokens: int, heads: int, width: int, *, device: torch.device | str, dtype: torch.dtype
) -> State:
    """The state of ``delayed`` before the first token."""
    return {
        LATE: torch.zeros(batch_size, tokens, heads, width, device=device, dtype=dtype),
        COUNT: torch.zeros(batch_size, device=device, dtype=torch.int64),
    }


def _picked(together_BEMX: Tensor, tokens: int, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Of the kept tokens and those of this call, pads among them: the one W before each, and the last W."""
    # Where the tokens stand, without pads: the kept ones first, then those of this call in their order.
    order_BT = (~valid_BT).to(torch.uint8).argsort(dim=1, stable=True) + tokens
    kept_BW = torch.arange(tokens, device=order_BT.device).expand(len(order_BT), -1)
    places_BE = torch.cat([kept_BW, order_BT], 1)
    rank_BT = (valid_BT.cumsum(1) - 1).clamp_min(0)
    last_BW = valid_BT.sum(1, keepdim=True) + kept_BW
    return tuple(_gather(together_BEMX, places_BE.gather(1, at)) for at in (rank_BT, last_BW))  # type: ignore[return-value]


def _gather(x_BEMX: Tensor, at_BP: Tensor) -> Tensor:
    return x_BEMX.gather(1, at_BP[..., None, None].expand(-1, -1, *x_BEMX.shape[2:]))
