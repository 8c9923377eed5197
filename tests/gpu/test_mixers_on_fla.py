"""The gated and the delta mixers by fla's kernels keep the kit's promises on a CUDA device, and agree with torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from linearize.ops.backends import available_backends
from linearize.protocols import AttentionSite
from linearize.testing import MixerConformance
from linearize.testing.numbers import assert_near, positions_of

OBSTACLE = available_backends()["fla"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; kernels do not run on a CPU"),
    pytest.mark.skipif(bool(OBSTACLE), reason=f"fla: {OBSTACLE}"),
]
DECAYS = ("A_log", "dt_bias")
FLA = {"backend": "fla", "conv_backend": "fla"}


class OnFla(MixerConformance):
    """fp32 inputs go through TF32 products (10 bits), so two ways to one number agree to about that."""

    options = (FLA,)
    site = AttentionSite(
        index=1, path="layers.1.self_attn", tower="language", layer=1, num_layers=4, cache_index=1, hidden_size=64,
        num_heads=4, num_key_value_heads=2, key_dim=64, value_dim=64,
    )  # fmt: skip
    dtype = torch.float32
    tolerance = 1e-2
    device = "cuda"
    decay_gradients = 1e-2
    """How far the gradients of the decays' parameters may be off."""

    def test_it_agrees_with_torch_in_outputs_and_gradients(self, options: dict[str, Any]) -> None:
        """The mixer with fla's kernels and the same one with the reference."""
        mixer, x = self.ready(options), self.inputs(200)
        other = self.build({**options, "backend": "torch", "conv_backend": "torch"}).to("cuda")
        other.load_state_dict(copy.deepcopy(mixer.state_dict()))
        found, wanted = (self._outputs_and_gradients(one, x) for one in (mixer, other))
        for name, tensor in wanted.items():
            assert_near(found[name], tensor, self.decay_gradients if name in DECAYS else self.tolerance, name)

    def _outputs_and_gradients(self, mixer: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = x.clone().requires_grad_()
        y, _ = mixer(x, position=positions_of(list(range(200)), self.site.key_dim, x))
        y.square().sum().backward()
        return {"output": y.detach(), "input": x.grad, **{name: p.grad for name, p in mixer.named_parameters()}}


class TestSimpleGla(OnFla):
    name = "simple_gla"


class TestRetnet(OnFla):
    name = "retnet"


class TestLightning(OnFla):
    name = "lightning"


class TestGla(OnFla):
    name = "gla"


class TestHgrn2(OnFla):
    name = "hgrn2"


class TestDeltaNet(OnFla):
    name = "delta_net"


class TestGatedDeltaNet(OnFla):
    name = "gated_delta_net"
    # The kernel takes them as differences of large sums: off by 1.6e-2 on an H200, where TF32 products in plain torch
    # cost 1.5e-3. docs/backends.md tells users.
    decay_gradients = 2.5e-2


class TestKda(OnFla):
    name = "kda"


class TestGsa(OnFla):
    name = "gsa"


class TestMamba3(OnFla):
    name = "mamba3"
