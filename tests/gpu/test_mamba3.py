"""Mamba-3 on a CUDA device: by fla's kernels against the torch reference, and against mamba_ssm's own SISO kernels."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_mamba3.config import Mamba3Config
from linearize_mamba3.mixer import Mamba3Mixer
from torch import Tensor

from linearize.ops.backends import available_backends
from linearize.protocols import AttentionSite

FLA = available_backends()["fla"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; kernels do not run on a CPU"),
]
BATCH, HEADS, GROUPS, K, V, HIDDEN = 2, 4, 2, 128, 64, 64
SITE = AttentionSite(
    index=0, path="", tower="", layer=0, cache_index=0, hidden_size=HIDDEN, num_heads=HEADS,
    num_key_value_heads=GROUPS, key_dim=K, value_dim=V,
)  # fmt: skip
# Queries, keys, chunk states and outputs are rounded to 8 bits on both sides, at different places; mamba_ssm's sines,
# cosines and sigmoids are the hardware's approximations. In the norm of the error.
TOLERANCE = 2.5e-2


def siso_kernel() -> Any:
    """mamba_ssm's training entry; skips with the reason where it cannot be imported."""
    try:
        return importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined").mamba3_siso_combined
    except Exception as error:  # compiled parts, drivers and versions fail in many ways
        pytest.skip(f"mamba_ssm's Mamba-3 kernels: {type(error).__name__}: {error}")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float().cuda()


def mixer(backend: str) -> Mamba3Mixer:
    """Without norm and gate of the output, every parameter off its start."""
    config = Mamba3Config(backend=backend, rope=False, output_norm=False, gate=False)  # type: ignore[arg-type]
    made = Mamba3Mixer(config, SITE)
    made.initialize("scratch", torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made.cuda()


def as_pairs_of_neighbours(x_XK: Tensor) -> Tensor:
    """Channels i and i + K/2, which turn together here, as 2i and 2i + 1, which turn together there."""
    return torch.stack(x_XK.chunk(2, -1), -1).flatten(-2)


def by_mamba_ssm(kernel: Any, ours: Mamba3Mixer, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the state [B, N, K, V] of ``ours`` by mamba_ssm's kernels, in bf16."""
    q = ours.q_proj(x_BTD).unflatten(-1, (HEADS, K))
    k = ours.k_proj(x_BTD).unflatten(-1, (GROUPS, K)).repeat_interleave(HEADS // GROUPS, 2)
    v = ours.v_proj(x_BTD).unflatten(-1, (GROUPS, V)).repeat_interleave(HEADS // GROUPS, 2)
    q, k = (F.rms_norm(y, (K,), norm.weight, 1e-5) for y, norm in ((q, ours.q_norm), (k, ours.k_norm)))
    dt = F.softplus(ours.dt_proj(x_BTD) + ours.dt_bias)
    a = torch.clamp(-F.softplus(ours.A_proj(x_BTD)), max=-1e-4)
    out, _, state_BNVK, *_ = kernel(
        Q=as_pairs_of_neighbours(q).bfloat16(),
        K=as_pairs_of_neighbours(k).bfloat16(),
        V=v.bfloat16(),
        ADT=(a * dt).transpose(1, 2),
        DT=dt.transpose(1, 2),
        Trap=ours.trapezoid_proj(x_BTD).transpose(1, 2),
        Q_bias=as_pairs_of_neighbours(ours.q_norm.bias),
        K_bias=as_pairs_of_neighbours(ours.k_norm.bias),
        Angles=ours.angle_proj(x_BTD).unsqueeze(2).expand(-1, -1, HEADS, -1),
        D=ours.D,
        chunk_size=64,
        return_final_states=True,
    )
    state_BNKV = state_BNVK.transpose(-1, -2)
    # Back from neighbours to halves.
    return out, torch.cat([state_BNKV[:, :, 0::2], state_BNKV[:, :, 1::2]], 2)


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    for name, b in wanted.items():
        error = float((found[name].double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        assert error <= tolerance, f"{name} is off by {error:.1e} of its norm"


@pytest.mark.parametrize("tokens", [63, 64, 65, 200])
def test_mamba_ssms_kernels_give_the_same_output_and_state(tokens: int) -> None:
    kernel, ours, x = siso_kernel(), mixer("torch"), draw(BATCH, tokens, HIDDEN, seed=2)
    with torch.no_grad():
        y, state = ours(x)
        out, last = by_mamba_ssm(kernel, ours, x)
    assert_near({"output": out, "state": last}, {"output": y, "state": state["ssm"]})


def test_mamba_ssms_kernels_give_the_same_gradients() -> None:
    kernel, ours, x = siso_kernel(), mixer("torch"), draw(BATCH, 130, HIDDEN, seed=2)
    toward = draw(BATCH, 130, HEADS, V, seed=3)
    leaves = dict(ours.named_parameters())
    results = []
    for y in (ours(x)[0], by_mamba_ssm(kernel, ours, x)[0]):
        gradients = torch.autograd.grad((y.float() * toward).sum(), list(leaves.values()))
        results.append(dict(zip(leaves, gradients, strict=True)))
    # A gradient passes the rounded forward and a rounded backward pass.
    assert_near(results[1], results[0], 2 * TOLERANCE)


@pytest.mark.skipif(bool(FLA), reason=f"fla: {FLA}")
def test_flas_kernels_agree_with_torch_in_bf16_output_state_and_every_gradient() -> None:
    reference, ours = mixer("torch"), mixer("fla").bfloat16()
    reference.load_state_dict(ours.state_dict())
    x, toward = draw(BATCH, 200, HIDDEN, seed=2), draw(BATCH, 200, HEADS, V, seed=3)
    results = []
    for one in (reference, ours):
        y, state = one(x.to(one.q_proj.weight.dtype))
        leaves = dict(one.named_parameters())
        gradients = torch.autograd.grad((y.float() * toward).sum(), list(leaves.values()))
        results.append({"y": y.detach(), "ssm": state["ssm"].detach(), **dict(zip(leaves, gradients, strict=True))})
    assert_near(results[1], results[0], 2 * TOLERANCE)
