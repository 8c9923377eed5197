"""Gradients of decays however strong they are: each head's against a loop over tokens in float64.

A head that forgets at once has gradients many orders smaller than one that remembers; an optimizer that divides by
their size sees their digits all the same.
Letters: B batch, T tokens, N heads, K key width, V value width, S slots.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops.channel_gated import channel_gated_recurrence
from linearize.ops.delta import delta_recurrence
from linearize.ops.gated import gated_recurrence
from linearize.ops.slots import slot_attention

# At 3.75 a token, the most that factors take, a gradient is e^-3.75 of what it is a difference of: 1e-5 of it in fp32.
FP32 = 3e-5
TOKENS, WIDTH = 40, 6
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor, *, is_delta: bool) -> Tensor:
    state, outputs = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., *(None,) * (5 - g.dim())]
        new = v[:, t] - is_delta * torch.einsum("bnk,bnkv->bnv", k[:, t], state)
        state = state + torch.einsum("bn,bnk,bnv->bnkv", write[:, t], k[:, t], new)
        outputs.append(torch.einsum("bnk,bnkv->bnv", q[:, t], state))
    return torch.stack(outputs, 1)


def slots_loop(q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor) -> Tensor:
    keys = values = q.new_zeros(*q.shape[:1], *q.shape[2:], g.shape[-1])
    values, outputs = values.transpose(-1, -2), []
    for t in range(q.shape[1]):
        w = write[:, t].unsqueeze(-1).expand_as(g[:, t])
        keys = keys * g[:, t].exp().unsqueeze(-2) + k[:, t].unsqueeze(-1) * w.unsqueeze(-2)
        values = values * g[:, t].exp().unsqueeze(-1) + w.unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((torch.einsum("bnk,bnks->bns", q[:, t], keys).softmax(-1).unsqueeze(-2) @ values).squeeze(-2))
    return torch.stack(outputs, 1)


RECURRENCES: dict[str, tuple[Recurrence, Recurrence, bool]] = {
    "gated": (
        lambda q, k, v, w, g: gated_recurrence(q, k, v, g, write_BTN=w)[0],
        lambda *tensors: loop(*tensors, is_delta=False), False,
    ),
    "channel_gated": (
        lambda q, k, v, w, g: channel_gated_recurrence(q, k, v, g, write_BTN=w)[0],
        lambda *tensors: loop(*tensors, is_delta=False), True,
    ),
    "gated_delta": (
        lambda q, k, v, w, g: delta_recurrence(q, k, v, w, g)[0], lambda *tensors: loop(*tensors, is_delta=True), False,
    ),
    "kda": (
        lambda q, k, v, w, g: delta_recurrence(q, k, v, w, g)[0], lambda *tensors: loop(*tensors, is_delta=True), True,
    ),
    "slots": (
        lambda q, k, v, w, g: slot_attention(q, k, v, w.unsqueeze(-1).expand_as(g), g)[0], slots_loop, True,
    ),
}  # fmt: skip
"""Name -> the operation, the loop, and whether each channel (or slot) has a decay of its own."""


def gradients(function: Recurrence, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """That of g alone."""
    *others, g = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors)
    y = function(*others, g)
    toward = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad(y, g, toward.to(dtype))[0].double()


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("decay", [0.1, 1.0, 3.0, 6.0, 12.0, 30.0, 80.0])
@pytest.mark.parametrize("beside", [0.1, 12.0])
def test_the_gradient_of_each_heads_decay_is_right_to_five_digits(name: str, decay: float, beside: float) -> None:
    function, by_token, is_per_channel = RECURRENCES[name]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, TOKENS, 2, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3))
    write = torch.rand(2, TOKENS, 2, generator=generator, dtype=torch.float64)
    strength = torch.tensor([decay, beside], dtype=torch.float64)
    g = -strength * (1 + 0.1 * torch.rand(2, TOKENS, 2, generator=generator, dtype=torch.float64))
    if is_per_channel:
        g = g.unsqueeze(-1) * (1 + 0.1 * torch.rand(WIDTH, generator=generator, dtype=torch.float64))
    tensors = [q, F.normalize(k, dim=-1), v, write, g]
    found, wanted = gradients(function, tensors, torch.float32), gradients(by_token, tensors, torch.float64)
    for head in range(2):
        error = (found[:, :, head] - wanted[:, :, head]).norm() / wanted[:, :, head].norm()
        assert error <= FP32, f"head {head}: {error:.1e}"
