"""fla's gated slot attention against the torch reference on a CUDA device, every gradient included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linearize.ops.backends import available_backends, choose

REASON = available_backends()["fla"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; kernels do not run on a CPU"),
    pytest.mark.skipif(bool(REASON), reason=f"fla: {REASON}"),
]
# One head shape for all tests: a new shape or dtype costs minutes of kernel tuning.
BATCH, HEADS, GROUPS, WIDTH, SLOTS = 2, 8, 4, 128, 64
# Inputs, scores, chunk states and outputs are rounded to 8 bits, and the scores pass a softmax; fp32 products run as
# TF32 (10 bits). In the norm of the error.
TOLERANCE = {torch.bfloat16: 2.5e-2, torch.float32: 6e-3}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float().cuda()


def draw(tokens: int, strongest: float = 1.0) -> dict[str, Tensor]:
    """By the names of the reference's arguments; gates log-uniform over three decades, writes as the mixer has them."""
    generator = torch.Generator().manual_seed(3)
    g = -strongest * 1e-3 ** torch.rand(BATCH, tokens, GROUPS, SLOTS, generator=generator).cuda()
    return {
        "q_BTNK": normal(BATCH, tokens, HEADS, WIDTH, seed=0),
        "k_BTMK": normal(BATCH, tokens, GROUPS, WIDTH, seed=1),
        "v_BTMV": normal(BATCH, tokens, GROUPS, WIDTH, seed=2),
        "write_BTMS": (-torch.expm1(g)).bfloat16().float(),
        "g_BTMS": g,
        "slot_keys_BMKS": normal(BATCH, GROUPS, WIDTH, SLOTS, seed=4),
        "slot_values_BMSV": normal(BATCH, GROUPS, SLOTS, WIDTH, seed=5),
    }


def run(
    backend: str, leaves: dict[str, Tensor], dtype: torch.dtype, segments: Tensor | None = None
) -> dict[str, Tensor]:
    """Output, final slots and gradients by name."""
    kept = ("g_BTMS", "slot_keys_BMKS", "slot_values_BMSV")
    typed = {
        name: leaf.detach().to(leaf.dtype if name in kept else dtype).requires_grad_() for name, leaf in leaves.items()
    }
    outputs = choose("slots", backend, "cuda").kernel(**typed, scale=WIDTH**-0.5, segments_BT=segments)
    toward = [normal(*x.shape, seed=8 + index).to(x.dtype) for index, x in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, list(typed.values()), toward)
    named = {f"d{name}": gradient for name, gradient in zip(typed, gradients, strict=True)}
    results = dict(zip(("y", "final keys", "final values"), (x.detach() for x in outputs), strict=True))
    return {**results, **named}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, b in wanted.items():
        error = float((found[name].double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        assert error <= tolerance, f"{name} is off by {error:.1e} of its norm"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
def test_kernels_agree_in_output_slots_and_every_gradient(tokens: int, dtype: torch.dtype) -> None:
    leaves = draw(tokens)
    assert_near(run("fla", leaves, dtype), run("torch", leaves, torch.float32), TOLERANCE[dtype])


def test_packed_segments_agree_in_output_slots_and_every_gradient() -> None:
    leaves = draw(200)
    segments = torch.zeros(BATCH, 200, dtype=torch.long, device="cuda")
    segments[0, 70:] += 1
    segments[0, 71:] += 1
    segments[1, 128:] += 3
    wanted = run("torch", leaves, torch.float32, segments)
    assert_near(run("fla", leaves, torch.bfloat16, segments), wanted, TOLERANCE[torch.bfloat16])


def test_strong_gates_agree_and_stay_finite() -> None:
    leaves = draw(200, strongest=40.0)
    wanted, found = run("torch", leaves, torch.float32), run("fla", leaves, torch.bfloat16)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert_near(found, wanted, TOLERANCE[torch.bfloat16])


def test_decode_steps_follow_the_reference_and_leave_the_given_slots_alone() -> None:
    leaves = draw(6)
    start = {name: leaves.pop(name) for name in ("slot_keys_BMKS", "slot_values_BMSV")}
    results = []
    for backend in ("torch", "fla"):
        slots, outputs = start, []
        with torch.no_grad():
            for t in range(6):
                before = {name: tensor.clone() for name, tensor in slots.items()}
                step = {name: leaf[:, t : t + 1] for name, leaf in leaves.items()}
                y, *new = choose("slots", backend, "cuda").kernel(**step, scale=WIDTH**-0.5, **slots)
                assert all(torch.equal(slots[name], before[name]) for name in slots)
                slots = dict(zip(start, new, strict=True))
                outputs.append(y)
        results.append({"y": torch.cat(outputs, 1), **slots})
    # One token at a time, all in fp32 without matrix products.
    assert_near(results[1], results[0], 1e-4)


def test_the_torch_reference_on_a_gpu_equals_itself_on_a_cpu() -> None:
    leaves = draw(100)
    on_gpu = choose("slots", "torch", "cuda").kernel(**leaves, scale=WIDTH**-0.5)
    on_cpu = choose("slots", "torch", "cpu").kernel(
        **{name: leaf.cpu() for name, leaf in leaves.items()}, scale=WIDTH**-0.5
    )
    for found, wanted in zip(on_gpu, on_cpu, strict=True):
        # fp32 sums in another order, and on the GPU decays by halves.
        assert_near({"": found.cpu()}, {"": wanted}, 5e-5)
