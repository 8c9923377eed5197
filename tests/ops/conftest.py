"""Slow stand-ins for the kernels, so that what surrounds them is tested where there is no GPU.

They follow the documented interfaces of flash-linear-attention 0.6, mamba-ssm 2.3, causal-conv1d 1.7.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def recur(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Equal heads, [B, T, N, X], state [B, N, K, V]."""
    outputs = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., None, None] + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, 1), state


def simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, scale: float, initial_state: Tensor | None,
    output_final_state: bool, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert output_final_state
    assert q.shape == k.shape
    assert q.dtype == k.dtype == v.dtype
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    sequences = q.shape[0] if cu_seqlens is None else len(bounds) - 1
    if initial_state is None:
        initial_state = q.new_zeros(sequences, q.shape[2], q.shape[3], v.shape[3])
    assert initial_state.shape[0] == sequences
    if cu_seqlens is None:
        return recur(q * scale, k, v, g, initial_state)
    assert q.shape[0] == 1
    parts = [
        recur(q[:, a:b] * scale, k[:, a:b], v[:, a:b], g[:, a:b], initial_state[index : index + 1])
        for index, (a, b) in enumerate(pairwise(bounds))
    ]
    return torch.cat([part for part, _ in parts], 1), torch.cat([state for _, state in parts])


def chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    # As fla 0.6.0's chunk_bwd_dv.
    assert q.element_size() != 2 or (q.shape[-1] % 2 == 0 and v.shape[-1] % 2 == 0)
    y, state = simple_gla(q.float(), k.float(), v.float(), g, **more)
    return y.to(q.dtype), state


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`recur`, with the delta rule; g is [B, T, N, K], [B, T, N] or None."""
    outputs = []
    for t in range(q.shape[1]):
        if g is not None:
            state = state * (g[:, t, ..., None] if g.dim() == 4 else g[:, t, ..., None, None]).exp()
        new = beta[:, t, :, None] * (v[:, t] - (k[:, t, :, None, :] @ state).squeeze(-2))
        state = state + k[:, t, :, :, None] * new[:, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, 1), state


def fla_kernel(one_sequence: Any, is_step: bool = False) -> Any:
    """A kernel of fla.ops from a function of (inputs by name, state) for whole sequences."""

    def kernel(
        *, scale: float, initial_state: Tensor | None, output_final_state: bool, cu_seqlens: Tensor | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        assert output_final_state
        assert q.shape == k.shape
        assert q.shape[:3] == v.shape[:3]
        assert q.dtype == k.dtype == v.dtype
        if is_step:
            # fla's gated_delta_rule and kda have no gradient for these.
            assert q.shape[1] == 1
            assert cu_seqlens is None
            assert not torch.is_grad_enabled()
        bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        sequences = q.shape[0] if cu_seqlens is None else len(bounds) - 1
        if initial_state is None:
            initial_state = torch.zeros(sequences, q.shape[2], q.shape[3], v.shape[3])
        assert initial_state.shape[0] == sequences
        assert initial_state.dtype == torch.float32
        full = {name: tensor.float() for name, tensor in inputs.items()} | {"q": q.float() * scale}
        if cu_seqlens is None:
            y, final = one_sequence(full, initial_state)
            return y.to(q.dtype), final
        assert q.shape[0] == 1
        parts = [
            one_sequence({name: tensor[:, a:b] for name, tensor in full.items()}, initial_state[index : index + 1])
            for index, (a, b) in enumerate(pairwise(bounds))
        ]
        return torch.cat([part for part, _ in parts], 1).to(q.dtype), torch.cat([state for _, state in parts])

    return kernel


def gla(inputs: dict[str, Tensor], state: Tensor, gate: str = "g") -> tuple[Tensor, Tensor]:
    q, k, v, g = (inputs.pop(name) for name in ("q", "k", "v", gate))
    assert not inputs
    assert g.shape == q.shape
    outputs = []
    for t in range(q.shape[1]):
        state = state * g[:, t, ..., None].exp() + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, 1), state


def delta_by_name(gate_dims: int) -> Any:
    def one_sequence(inputs: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, beta = (inputs.pop(name) for name in ("q", "k", "v", "beta"))
        g = inputs.pop("g") if gate_dims else None
        assert not inputs
        assert g is None or g.dim() == gate_dims
        return delta(q, k, v, beta, g, state)

    return one_sequence


def chunk_delta_rule(*, q: Tensor, **rest: Any) -> Any:
    assert q.dtype != torch.float32
    return fla_kernel(delta_by_name(0))(q=q, **rest)


def chunk_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, chunk_size: int, initial_states: Tensor | None,
    seq_idx: Tensor | None, return_final_states: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert return_final_states
    assert b.shape == c.shape
    assert chunk_size & (chunk_size - 1) == 0
    state = x.new_zeros(x.shape[0], x.shape[2], c.shape[3], x.shape[3])
    if initial_states is not None:
        assert initial_states.is_contiguous()
        state = initial_states.transpose(-1, -2)
    outputs = []
    for t in range(x.shape[1]):
        if seq_idx is not None:
            assert seq_idx.dtype == torch.int32
            before = seq_idx[:, t - 1] if t else torch.zeros_like(seq_idx[:, 0])
            state = state * (seq_idx[:, t] == before)[:, None, None, None]
        span = slice(t, t + 1)
        y, state = recur(c[:, span], b[:, span], x[:, span] * dt[:, span, :, None], dt[:, span] * a, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state.transpose(-1, -2)


def state_update(
    state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
    D: Tensor | None = None, z: Tensor | None = None, dt_bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    # As mamba_ssm 2.3.2 launches its kernel: a missing dt_bias or D is an AttributeError or a TypeError here too.
    assert dt.stride(-1) == a.stride(-1) == a.stride(-2) == dt_bias.stride(-1) == 0  # type: ignore[union-attr]
    strides = (
        *((dt_bias.stride(0), dt_bias.stride(1)) if dt_bias is not None else 0),  # type: ignore[misc]
        *((D.stride(0), D.stride(1)) if D is not None else 0),  # type: ignore[misc]
    )
    assert len(strides) == 4
    assert z is None
    assert D is not None
    assert dt_bias is not None
    assert D.shape == dt_bias.shape == x.shape[1:]
    dt = dt + dt_bias
    state.copy_(state * (dt[..., None] * a).exp() + (dt * x)[..., None] * b[:, :, None, :])
    return (state @ c[..., None]).squeeze(-1) + x * D


def conv_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, initial_states: Tensor | None, activation: str | None
) -> Tensor:
    assert x.stride(1) == 1
    past = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    if initial_states is not None:
        assert initial_states.stride(1) == 1
        past = initial_states
    y = F.conv1d(torch.cat([past, x], -1), weight.unsqueeze(1), bias, groups=x.shape[1])
    return F.silu(y) if activation == "silu" else y


def fla_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, initial_state: Tensor | None, activation: str | None
) -> tuple[Tensor, None]:
    assert x.is_contiguous()
    if initial_state is not None:
        assert initial_state.shape[-1] == weight.shape[1]
        # The oldest of the W inputs must never matter.
        initial_state = torch.cat([torch.full_like(initial_state[..., :1], 99.0), initial_state[..., 1:]], -1)[..., 1:]
        initial_state = initial_state.transpose(1, 2).contiguous().transpose(1, 2)
    y = conv_fn(x.transpose(1, 2), weight, bias, initial_states=initial_state, activation=activation)
    return y.transpose(1, 2), None


STAND_INS: dict[str, dict[str, Any]] = {
    "fla": {},
    "fla.modules": {},
    "fla.modules.causal_conv1d": {"causal_conv1d": fla_conv},
    "fla.ops": {},
    "fla.ops.gla": {
        "chunk_gla": fla_kernel(gla),
        "fused_recurrent_gla": fla_kernel(partial(gla, gate="gk"), is_step=True),
    },
    "fla.ops.delta_rule": {
        "chunk_delta_rule": chunk_delta_rule,
        "fused_recurrent_delta_rule": fla_kernel(delta_by_name(0), is_step=True),
    },
    "fla.ops.gated_delta_rule": {
        "chunk_gated_delta_rule": fla_kernel(delta_by_name(3)),
        "fused_recurrent_gated_delta_rule": fla_kernel(delta_by_name(3), is_step=True),
    },
    "fla.ops.kda": {
        "chunk_kda": fla_kernel(delta_by_name(4)),
        "fused_recurrent_kda": fla_kernel(delta_by_name(4), is_step=True),
    },
    "fla.ops.simple_gla": {"chunk_simple_gla": chunk_simple_gla, "fused_recurrent_simple_gla": simple_gla},
    "mamba_ssm": {},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.selective_state_update": {"selective_state_update": state_update},
    "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": chunk_scan},
    "causal_conv1d": {"causal_conv1d_fn": conv_fn},
}
ADAPTERS = (
    "fla_kernels", "fla_channel_kernels", "fla_delta_kernels", "mamba_ssm_kernels", "causal_conv1d_kernels",
)  # fmt: skip


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    for name, content in STAND_INS.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ADAPTERS:
        monkeypatch.delitem(sys.modules, f"linearize_kernels.{name}", raising=False)
    yield {name: importlib.import_module(f"linearize_kernels.{name}") for name in ADAPTERS}
    for name in ADAPTERS:
        sys.modules.pop(f"linearize_kernels.{name}", None)
