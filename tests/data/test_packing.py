"""Which samples share a row, and how their inputs lie end to end."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from linearize.data.packing import end_to_end, fill_rows
from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT, Batch


def test_every_sample_is_in_one_row_that_has_room_for_it() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 90) for _ in range(200)]
    rows = fill_rows(lengths, 100)
    assert sorted(number for row in rows for number in row) == list(range(200))
    assert all(sum(lengths[number] for number in row) <= 100 for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert len(rows) <= 11 / 9 * sum(lengths) / 100 + 2


def test_a_sample_longer_than_a_row_has_one_to_itself() -> None:
    assert fill_rows([5, 300, 4, 2], 10) == [[1], [0, 2], [3]]


def one(ids: Sequence[int], **inputs: torch.Tensor) -> Batch:
    row = torch.tensor([ids])
    kinds = torch.where(row == 9, TOKEN_IMAGE, TOKEN_TEXT).to(torch.uint8)
    return Batch({"input_ids": row, "attention_mask": torch.ones_like(row), **inputs}, row > 5, kinds)


def test_inputs_by_tokens_have_zeros_where_a_sample_has_none_and_pictures_follow_each_other() -> None:
    types = torch.tensor([[0, 1]])
    packed = end_to_end(
        [one([4, 9], token_type_ids=types, pixel_values=torch.full((1, 3), 1.0)), one([5, 6, 7]),
         one([9], pixel_values=torch.full((2, 3), 2.0), token_type_ids=types[:, 1:])],
        8, pad_token_id=1,
    )  # fmt: skip
    expected = {
        "input_ids": [[4, 9, 5, 6, 7, 9, 1, 1]], "token_type_ids": [[0, 1, 0, 0, 0, 1, 0, 0]],
        "position_ids": [[0, 1, 0, 1, 2, 0, 0, 1]],
    }  # fmt: skip
    assert packed.inputs.keys() == {*expected, "pixel_values"}
    assert {name: packed.inputs[name].tolist() for name in expected} == expected
    assert packed.inputs["pixel_values"][:, 0].tolist() == [1.0, 2.0, 2.0]
    assert packed.loss_mask_BT.tolist() == [[False, True, False, True, True, True, False, False]]
    assert packed.token_kind_BT.tolist() == [[1, 2, 1, 1, 1, 2, TOKEN_PAD, TOKEN_PAD]]
    assert packed.segments_BT is not None
    assert packed.segments_BT.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]
    assert packed.num_samples == 3


def test_axes_of_positions_and_axes_of_pictures_are_kept() -> None:
    pictures = [torch.full((1, count, 3), float(count)) for count in (1, 2)]
    packed = end_to_end(
        [one([4, 9], pixel_values=pictures[0]), one([9], pixel_values=pictures[1])], 4, pad_token_id=1,
        positions=[torch.tensor([[[0, 1]], [[0, 5]]]), torch.tensor([[[0]], [[3]]])], along={"pixel_values": 1},
    )  # fmt: skip
    assert packed.inputs["position_ids"].tolist() == [[[0, 1, 0, 0]], [[0, 5, 3, 0]]]
    assert packed.inputs["pixel_values"].shape == (1, 3, 3)


def test_what_is_no_sample_by_itself_or_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens were to share a row of 2"):
        end_to_end([one([4, 5]), one([4])], 2, pad_token_id=1)
    padded = one([4, 5])
    padded.token_kind_BT[0, 1] = TOKEN_PAD
    with pytest.raises(ValueError, match="rows with pads"):
        end_to_end([padded], 2, pad_token_id=1)
