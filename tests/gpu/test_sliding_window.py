"""The sliding window on a CUDA device: the kit, the CPU's numbers in each dtype, and memory that grows with T only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linearize_sliding_window.attention import windowed_attention

from linearize.ops.backends import available_backends
from linearize.protocols import AttentionSite
from linearize.testing import MixerConformance
from linearize.testing.numbers import assert_near, draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; the same runs on a CPU elsewhere"),
]
TORCH = {"backend": "torch", "conv_backend": "torch"}


class TestSlidingWindow(MixerConformance):
    """In float64, where the order of sums is all that differs."""

    name = "sliding_window"
    options = ({"window": 4, "sinks": 2}, {"window": 70})
    device = "cuda"


class TestSwaLinear(MixerConformance):
    name = "swa_linear"
    options = (
        {"window": 6, "linear": {"type": "gated_delta_net", **TORCH}},
        {"window": 6, "combine": "joint", "linear": {"type": "feature_map", **TORCH}},
    )
    device = "cuda"


@pytest.mark.skipif(bool(available_backends()["fla"]), reason=f"fla: {available_backends()['fla']}")
class TestSwaLinearByFla(MixerConformance):
    """fp32 inputs of fla's kernels go through TF32 products (10 bits)."""

    name = "swa_linear"
    options = ({"window": 6, "linear": {"type": "simple_gla", "backend": "fla", "conv_backend": "fla"}},)
    site = AttentionSite(
        index=1, path="layers.1.self_attn", tower="language", layer=1, num_layers=4, cache_index=1, hidden_size=64,
        num_heads=4, num_key_value_heads=2, key_dim=64, value_dim=64,
    )  # fmt: skip
    dtype = torch.float32
    tolerance = 1e-2
    device = "cuda"


def outputs_and_gradients(dtype: torch.dtype, device: str, **options: Any) -> dict[str, torch.Tensor]:
    q = draw(2, 300, 8, 64, seed=0, dtype=dtype, device=device).requires_grad_()
    k, v = (draw(2, 300, 2, 64, seed=seed, dtype=dtype, device=device).requires_grad_() for seed in (1, 2))
    valid = torch.ones(2, 300, dtype=torch.bool, device=device)
    valid[0, :40] = False
    y, _ = windowed_attention(q, k, v, window=50, scale=0.125, valid_BT=valid, **options)
    y = y * valid[..., None, None]
    y.float().square().sum().backward()
    tensors = {"output": y.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
    return {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}


# float32 products may go through TF32 (10 bits) and bf16 has 8; sums of 50 numbers average their errors out.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("options", [{"sinks": 0}, {"sinks": 4}, {"sinks": 4, "softcap": 3.0}])
def test_it_computes_what_float64_computes_on_a_cpu(
    dtype: torch.dtype, tolerance: float, options: dict[str, Any]
) -> None:
    found = outputs_and_gradients(dtype, "cuda", **options)
    for name, wanted in outputs_and_gradients(torch.float64, "cpu", **options).items():
        assert_near(found[name], wanted, tolerance, name)


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    peaks = []
    for length in (8192, 32768):
        q = torch.randn(1, length, 8, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y, _ = windowed_attention(q, q[:, :, :2], q[:, :, :2], window=256, sinks=4, scale=0.125)
        y.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del q, y
    assert peaks[1] < 4.4 * peaks[0]
