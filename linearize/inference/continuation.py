"""Whether a prompt goes on from what a cache has read, and what of its inputs is new then.

A cache holds what the model read, token by token; a prompt is written anew at each turn, from the words. The two agree
where the template leaves earlier turns as they were and the answer's text gives the answer's tokens again. What cannot
be shown to agree is read as a whole.

Letters: T tokens of the prompt, S tokens that the cache has read, I entries of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PIXELS = "pixel_values"


class ReadAgainError(Exception):
    """Why a prompt cannot go on from a cache: a clause for people."""


def new_inputs(
    ids_1T: Tensor, extras: Mapping[str, Tensor], read_S: Tensor, read_extras: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What a model that goes on behind ``read_S`` is given beside ids and mask.

    Args:
        ids_1T: the whole prompt.
        extras: what the prompt has beside ids and mask.
        read_extras: what the prompt before had.

    Raises:
        ReadAgainError: the prompt does not go on, or it cannot be told what of ``extras`` is new.
    """
    seen, tokens = len(read_S), ids_1T.shape[1]
    if tokens <= seen or not torch.equal(ids_1T[0, :seen], read_S):
        raise ReadAgainError("the prompt writes what was said before otherwise than it was read")
    new: dict[str, Tensor] = {}
    for name, value in extras.items():
        if value.dim() > 1 and value.shape[:2] == (1, tokens):
            # A mark for each token: 0 is that of plain text, which a model takes for granted.
            if bool(value[:, seen:].any()):
                raise ReadAgainError(f"its new tokens have marks of their own ({name})")
        elif name not in read_extras or not _are_equal(value, read_extras[name]):
            new[name] = _behind(name, value, read_extras.get(name), alone=len(extras) == 1)
    return new


def _behind(name: str, value: Tensor, before: Tensor | None, *, alone: bool) -> Tensor:
    """The pixels of new images, where they stand in one row behind those of the earlier ones and nothing is beside.

    What else describes images (grids, sizes, masks) may enter positions, which count from the first token.
    """
    if name != PIXELS or not alone:
        raise ReadAgainError(f"the inputs of its images ({name}) cannot be told from those of earlier ones")
    if before is None:
        return value
    num_before = len(before)
    if value.shape[1:] != before.shape[1:] or not torch.equal(value[:num_before], before):
        raise ReadAgainError("the pixels of earlier images have changed")
    return value[num_before:]


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
