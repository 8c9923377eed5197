"""Several samples in one row, laid end to end: rows of one length and hardly any padding.

Letters: B batch, T tokens, A axes of a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.protocols import TOKEN_PAD, Batch

ALONG_TOKENS = 1


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which samples share a row, by their numbers: the longest first, each into the first row with room for it.

    Source: first fit decreasing, at most 11/9 of the fewest rows and one (Johnson, 1973). In a row the samples keep
    their order; one that is longer than ``width`` has a row to itself.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        place = next((place for place, left in enumerate(room) if lengths[number] <= left), None)
        if place is None:
            rows.append([number])
            room.append(width - lengths[number])
        else:
            rows[place].append(number)
            room[place] -= lengths[number]
    return [sorted(row) for row in rows]


def end_to_end(
    batches: Sequence[Batch],
    width: int,
    *,
    pad_token_id: int,
    positions: Sequence[Tensor] | None = None,
    along: Mapping[str, int] | None = None,
) -> Batch:
    """Batches of one row each, without pads, as one row of ``width`` tokens.

    There is no attention mask: positions that begin again say where a sample begins, to transformers as to linear
    sites. Pads behind the last sample are one more document, which no loss counts.

    Args:
        positions: of each batch, [1, T] or [A, 1, T]; None: they count tokens from 0.
        along: name of an input that is not by tokens -> the axis on which those of the samples follow each other,
            0 where it is not named.

    Raises:
        ValueError: a batch has several rows or pads, or all together are longer than ``width``.
    """
    lengths = [batch.token_kind_BT.shape[1] for batch in batches]
    if any(len(batch.token_kind_BT) > 1 or bool((batch.token_kind_BT == TOKEN_PAD).any()) for batch in batches):
        raise ValueError("rows with pads, or batches of several rows, were to be packed; expected one sample each")
    rest = width - sum(lengths)
    if rest < 0:
        raise ValueError(f"{len(batches)} samples of {sum(lengths)} tokens were to share a row of {width}")
    names = {name: None for batch in batches for name in batch.inputs if name not in ("attention_mask", "position_ids")}
    inputs = {name: _joined(name, batches, lengths, rest, (along or {}).get(name, 0)) for name in names}
    inputs["input_ids"][:, width - rest :] = pad_token_id
    positions = positions or [torch.arange(length)[None] for length in lengths]
    last = torch.arange(rest).expand(*positions[0].shape[:-1], -1)
    inputs["position_ids"] = torch.cat([*positions, last], -1)
    segments = [number for number, length in enumerate([*lengths, rest]) for _ in range(length)]
    return Batch(
        inputs,
        F.pad(torch.cat([batch.loss_mask_BT for batch in batches], 1), (0, rest), value=False),
        F.pad(torch.cat([batch.token_kind_BT for batch in batches], 1), (0, rest), value=TOKEN_PAD),
        torch.tensor([segments]),
    )


def _joined(name: str, batches: Sequence[Batch], lengths: Sequence[int], rest: int, axis: int) -> Tensor:
    """One input of the row: by tokens where each has as many as its sample, with zeros where a sample has none."""
    found = [batch.inputs.get(name) for batch in batches]
    pairs = list(zip(found, lengths, strict=True))
    by_tokens = all(one is None or tuple(one.shape[:2]) == (1, length) for one, length in pairs)
    given = [one for one in found if one is not None]
    if not by_tokens:
        return torch.cat(given, axis)
    example = given[0]
    whole = [example.new_zeros(1, length, *example.shape[2:]) if one is None else one for one, length in pairs]
    return torch.cat([*whole, example.new_zeros(1, rest, *example.shape[2:])], ALONG_TOKENS)
