"""Operations over no token: an empty output, and the state that was given, or an empty one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linearize.ops.channel_gated import channel_gated_recurrence
from linearize.ops.conv import causal_conv
from linearize.ops.delta import delta_recurrence
from linearize.ops.gated import gated_recurrence, ssd_recurrence
from linearize.ops.slots import slot_attention

Operation = Callable[[int, tuple[Tensor, ...] | None], tuple[Tensor, ...]]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def qkv(length: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, length, 4, 5), draw(2, length, 2, 5), draw(2, length, 2, 3)


def first(state: tuple[Tensor, ...] | None) -> Tensor | None:
    return None if state is None else state[0]


def slots(length: int, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    keys, values = state or (None, None)
    gate = draw(2, length, 2, 6)
    return slot_attention(*qkv(length), gate.sigmoid(), -gate.exp(), slot_keys_BMKS=keys, slot_values_BMSV=values)


OPERATIONS: dict[str, Operation] = {
    "gated": lambda t, state: gated_recurrence(*qkv(t), -draw(2, t, 4).exp(), state_BNKV=first(state)),
    "ssd": lambda t, state: ssd_recurrence(*qkv(t), draw(2, t, 4).exp(), -torch.ones(4), state_BNKV=first(state)),
    "channel_gated": lambda t, state: channel_gated_recurrence(
        *qkv(t), -draw(2, t, 4, 5).exp(), state_BNKV=first(state)
    ),
    "delta": lambda t, state: delta_recurrence(*qkv(t), draw(2, t, 4).sigmoid(), state_BNKV=first(state)),
    "kda": lambda t, state: delta_recurrence(
        *qkv(t), draw(2, t, 4).sigmoid(), -draw(2, t, 4, 5).exp(), state_BNKV=first(state)
    ),
    "slots": slots,
    "conv": lambda t, state: causal_conv(draw(2, t, 6), draw(6, 4), draw(6), state_BCX=first(state)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("tokens_before", [0, 1, 9])
def test_no_token_gives_no_output_and_leaves_the_state_as_it_was(name: str, tokens_before: int) -> None:
    operation = OPERATIONS[name]
    y, *before = operation(tokens_before, None)
    y_of_none, *after = operation(0, tuple(before))
    assert y_of_none.shape == (2, 0, *y.shape[2:])
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_state_after_no_token_is_zeros_shaped_as_after_one(name: str) -> None:
    _, *none = OPERATIONS[name](0, None)
    _, *one = OPERATIONS[name](1, None)
    assert [(state.shape, state.dtype) for state in none] == [(state.shape, state.dtype) for state in one]
    assert not any(bool(state.any()) for state in none)
