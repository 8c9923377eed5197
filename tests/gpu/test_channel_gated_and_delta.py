"""Kernels with channel decays and delta rules against the torch reference on a CUDA device, every gradient included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops.backends import available_backends, choose

REASON = available_backends()["fla"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; kernels do not run on a CPU"),
    pytest.mark.skipif(bool(REASON), reason=f"fla: {REASON}"),
]
# One head shape for all tests: a new shape or dtype costs minutes of kernel tuning.
BATCH, HEADS, GROUPS, WIDTH = 2, 8, 4, 128
FAMILIES = ("channel_gated", "deltanet", "gated_deltanet", "kda")
# Inputs, chunk states and outputs are rounded to 8 bits; fp32 products run as TF32 (10 bits). In the norm of the error.
TOLERANCE = {torch.bfloat16: 1.5e-2, torch.float32: 4e-3}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float().cuda()


def family_leaves(family: str, tokens: int, strongest: float = 1.0) -> dict[str, Tensor]:
    """By the names of the reference's arguments; unit keys, decays log-uniform over three decades."""
    generator = torch.Generator().manual_seed(3)
    k = F.normalize(normal(BATCH, tokens, GROUPS, WIDTH, seed=1), dim=-1)
    leaves = {"q_BTNK": normal(BATCH, tokens, HEADS, WIDTH, seed=0), "k_BTMK": k.bfloat16().float()}
    leaves["v_BTMV"] = normal(BATCH, tokens, GROUPS, WIDTH, seed=2)
    write = torch.rand(BATCH, tokens, HEADS, generator=generator).bfloat16().float().cuda()
    leaves["write_BTN" if family == "channel_gated" else "beta_BTN"] = write
    if family != "deltanet":
        widths = (HEADS,) if family == "gated_deltanet" else (HEADS, WIDTH)
        g = -strongest * 1e-3 ** torch.rand(BATCH, tokens, *widths, generator=generator)
        leaves["g_BTNK" if family == "channel_gated" else "g"] = g.cuda()
    leaves["state_BNKV"] = normal(BATCH, HEADS, WIDTH, WIDTH, seed=4)
    return leaves


def run(
    family: str, backend: str, leaves: dict[str, Tensor], dtype: torch.dtype, segments: Tensor | None = None
) -> dict[str, Tensor]:
    """Output, final state and gradients by name."""
    rounded = ("q_BTNK", "k_BTMK", "v_BTMV")
    typed = {
        name: leaf.detach().to(dtype if name in rounded else leaf.dtype).requires_grad_()
        for name, leaf in leaves.items()
    }
    kernel = choose("channel_gated" if family == "channel_gated" else "delta", backend, "cuda").kernel
    outputs = kernel(**typed, scale=WIDTH**-0.5, segments_BT=segments)
    toward = [normal(*y.shape, seed=8 + index).to(y.dtype) for index, y in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, list(typed.values()), toward)
    named = {f"d{name}": gradient for name, gradient in zip(typed, gradients, strict=True)}
    return {"y": outputs[0].detach(), "final": outputs[1].detach(), **named}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, b in wanted.items():
        error = float((found[name].double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        assert error <= tolerance, f"{name} is off by {error:.1e} of its norm"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree_in_output_state_and_every_gradient(family: str, tokens: int, dtype: torch.dtype) -> None:
    leaves = family_leaves(family, tokens)
    wanted = run(family, "torch", leaves, torch.float32)
    assert_near(run(family, "fla", leaves, dtype), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_segments_agree_in_output_state_and_every_gradient(family: str) -> None:
    leaves = family_leaves(family, 200)
    segments = torch.zeros(BATCH, 200, dtype=torch.long, device="cuda")
    segments[0, 70:] += 1
    segments[0, 71:] += 1
    segments[1, 128:] += 3
    wanted = run(family, "torch", leaves, torch.float32, segments)
    assert_near(run(family, "fla", leaves, torch.bfloat16, segments), wanted, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deltanet"])
def test_strong_decays_agree_and_stay_finite(family: str) -> None:
    leaves = family_leaves(family, 200, strongest=40.0)
    wanted = run(family, "torch", leaves, torch.float32)
    found = run(family, "fla", leaves, torch.bfloat16)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert_near(found, wanted, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_steps_follow_the_reference_and_leave_the_given_state_alone(family: str) -> None:
    leaves = family_leaves(family, 6)
    state = leaves.pop("state_BNKV")
    results = []
    for backend in ("torch", "fla"):
        kernel = choose("channel_gated" if family == "channel_gated" else "delta", backend, "cuda").kernel
        carried, outputs = state.clone(), []
        with torch.no_grad():
            for t in range(6):
                before = carried.clone()
                y, new = kernel(**{name: leaf[:, t : t + 1] for name, leaf in leaves.items()}, state_BNKV=carried)
                assert torch.equal(carried, before)
                carried = new
                outputs.append(y)
        results.append({"y": torch.cat(outputs, 1), "final": carried})
    # One token at a time, all in fp32 without matrix products.
    assert_near(results[1], results[0], 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_torch_reference_on_a_gpu_equals_itself_on_a_cpu(family: str) -> None:
    leaves = family_leaves(family, 100)
    operation = "channel_gated" if family == "channel_gated" else "delta"
    on_gpu = choose(operation, "torch", "cuda").kernel(**leaves)
    on_cpu = choose(operation, "torch", "cpu").kernel(**{name: leaf.cpu() for name, leaf in leaves.items()})
    for found, wanted in zip(on_gpu, on_cpu, strict=True):
        # fp32 sums in another order, and on the GPU decays by halves.
        assert_near({"": found.cpu()}, {"": wanted}, 2e-5)
