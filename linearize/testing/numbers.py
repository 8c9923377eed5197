"""Reproducible inputs for the kit's checks, measures of how far apart two tensors are, and slopes.

Letters: B batch, T tokens, D model width, K key width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROPE_BASE = 100.0

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
"""How near the fp32 outputs of equal tensors are that lie elsewhere in memory: CPU kernels choose a path by address."""


def draw(*shape: int, seed: int, dtype: torch.dtype, device: str) -> Tensor:
    """Standard normal numbers; the same seed and shape give the same on every device."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(device=device, dtype=dtype)


def positions_of(ids_T: Tensor | Sequence[int], key_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [1, T, K] at the positions ``ids_T``, as transformers passes them, in the dtype of ``like``."""
    frequency = ROPE_BASE ** (-torch.arange(0, key_dim, 2, dtype=torch.float64) / key_dim)
    angle_TK = torch.as_tensor(ids_T, dtype=torch.float64).unsqueeze(-1) * frequency
    angle_1TK = torch.cat([angle_TK, angle_TK], -1).unsqueeze(0)
    return angle_1TK.cos().to(like), angle_1TK.sin().to(like)


def distance(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of ``wanted``; infinite where a number is not finite."""
    difference = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    return float(difference) if bool(difference.isfinite()) else float("inf")


@torch.no_grad()
def slope(value: Callable[[], Tensor], tensor: Tensor, along: Tensor, step: float = 1e-5) -> float:
    """How fast the number ``value()`` changes as ``tensor`` moves ``along``, by central differences."""
    values, start = [], tensor.detach().clone()
    for sign in (1, -1):
        tensor.copy_(start + sign * step * along)
        values.append(float(value()))
    tensor.copy_(start)
    return (values[0] - values[1]) / (2 * step)


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Fails, with ``what`` and both numbers, unless ``distance`` is at most ``tolerance``."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}; expected {tuple(wanted.shape)}"
    error = distance(found, wanted)
    assert error <= tolerance, f"{what}: off by {error:.1e} of its size; expected at most {tolerance:.0e}"


def assert_values_near(
    found: Tensor, expected: Tensor, tolerance: float, what: str, hint: Callable[[], str] = lambda: ""
) -> None:
    """Fails unless each value is as far off as ``tolerance`` times the largest expected one, or less.

    The message is ``what``, which goes on "off by", both numbers and, computed only then, the hint.
    """
    __tracebackhide__ = True
    found, expected = found.detach().double(), expected.detach().double()
    largest, furthest = float(expected.abs().max()), float((found - expected).abs().max())
    if not furthest <= tolerance * max(largest, 1e-6):
        raise AssertionError(f"{what} off by {furthest:.2e}, largest value {largest:.2e}. {hint()}".rstrip())
