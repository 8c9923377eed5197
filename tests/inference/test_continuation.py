"""What of a prompt's inputs is new behind what a cache has read; what cannot be told apart is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linearize.inference.continuation import ReadAgainError, new_inputs

READ = torch.tensor([1, 2, 3])
IDS = torch.tensor([[1, 2, 3, 4, 5]])
ONE, TWO = torch.ones(2, 3, 4, 4), torch.full((1, 3, 4, 4), 2.0)


@pytest.mark.parametrize(
    ("extras", "before", "new"),
    [
        ({}, {}, {}),
        ({"pixel_values": ONE}, {"pixel_values": ONE.clone()}, {}),
        ({"pixel_values": ONE}, {}, {"pixel_values": ONE}),
        ({"pixel_values": torch.cat([ONE, TWO])}, {"pixel_values": ONE}, {"pixel_values": TWO}),
        ({"grid": TWO, "pixel_values": ONE}, {"grid": TWO, "pixel_values": ONE}, {}),
        ({"token_type_ids": torch.tensor([[0, 1, 1, 0, 0]])}, {"token_type_ids": torch.tensor([[0, 1, 1]])}, {}),
    ],
)
def test_what_is_new_is_found(extras: dict[str, Tensor], before: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    found = new_inputs(IDS, extras, READ, before)
    assert found.keys() == new.keys()
    assert all(torch.equal(found[name], new[name]) for name in new)


@pytest.mark.parametrize(
    ("extras", "before", "why"),
    [
        ({"token_type_ids": torch.tensor([[0, 1, 1, 0, 1]])}, {}, r"marks of their own \(token_type_ids\)"),
        ({"pixel_values": torch.cat([TWO, ONE])}, {"pixel_values": ONE}, "pixels of earlier images have changed"),
        ({"pixel_values": ONE[None]}, {"pixel_values": ONE[None, :1]}, "pixels of earlier images have changed"),
        ({"pixel_values": ONE, "grid": TWO}, {}, "cannot be told from those of earlier ones"),
        ({"grid": TWO}, {}, r"inputs of its images \(grid\)"),
    ],
)
def test_what_cannot_be_told_apart_is_read_again(
    extras: dict[str, Tensor], before: dict[str, Tensor], why: str
) -> None:
    with pytest.raises(ReadAgainError, match=why):
        new_inputs(IDS, extras, READ, before)


@pytest.mark.parametrize("ids", [[[1, 2, 4, 4, 5]], [[1, 2, 3]], [[1, 2]]])
def test_a_prompt_that_is_no_continuation_is_read_again(ids: list[list[int]]) -> None:
    with pytest.raises(ReadAgainError, match="otherwise than it was read"):
        new_inputs(torch.tensor(ids), {}, READ, {})
