"""Normalised linear attention by fla's kernels: the kit, agreement with torch in bf16, and weights that add up to 1."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from linearize.ops.backends import available_backends, choose
from linearize.protocols import AttentionSite
from linearize.testing import MixerConformance
from linearize.testing.numbers import assert_near, positions_of

OBSTACLE = available_backends()["fla"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; kernels do not run on a CPU"),
    pytest.mark.skipif(bool(OBSTACLE), reason=f"fla: {OBSTACLE}"),
]
FLA = {"backend": "fla", "conv_backend": "fla"}


class TestFeatureMapOnFla(MixerConformance):
    """fp32 inputs go through TF32 products (10 bits), so two ways to one number agree to about that."""

    name = "feature_map"
    options = (FLA, {**FLA, "normalizer": False, "output_norm": True, "gate": True})
    site = AttentionSite(
        index=1, path="layers.1.self_attn", tower="language", layer=1, num_layers=4, cache_index=1, hidden_size=64,
        num_heads=4, num_key_value_heads=2, key_dim=64, value_dim=64,
    )  # fmt: skip
    dtype = torch.float32
    tolerance = 1e-2
    device = "cuda"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", ["hedgehog", "t2r", "elu"])
    def test_it_agrees_with_torch_in_outputs_states_and_gradients(self, name: str, dtype: torch.dtype) -> None:
        """The mixer with fla's kernels and the same one with the reference, from a carried state, with pads."""
        made = {"map": name, "conv_width": 0}
        mixer = self.ready({**FLA, **made}).to(dtype)
        other = self.build({**made, "backend": "torch"}).to("cuda", dtype)
        other.load_state_dict(copy.deepcopy(mixer.state_dict()))
        found, wanted = (self._all_that_comes_out(one, dtype) for one in (mixer, other))
        for part, tensor in wanted.items():
            # bf16: features, chunk states, sums and their quotient are rounded to 8 bits each.
            assert_near(found[part], tensor, self.tolerance if dtype == torch.float32 else 4e-2, part)

    def _all_that_comes_out(self, mixer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        x = self.inputs(270).to(dtype).requires_grad_()
        valid = torch.ones(2, 200, dtype=torch.bool, device="cuda")
        valid[0, :13] = False
        position = positions_of(list(range(270)), self.site.key_dim, x)
        before, after = (tuple(part[:, span] for part in position) for span in (slice(0, 200), slice(200, 270)))
        first, state = mixer(x[:, :200], position=before, valid_BT=valid)
        second, state = mixer(x[:, 200:], position=after, state=state)
        y = torch.cat([first * valid[..., None, None], second], 1)
        toward = self.inputs(270, seed=5)[..., :4].unsqueeze(-1).to(dtype)
        dx, *gradients = torch.autograd.grad((y * toward).float().sum(), [x, *mixer.parameters()])
        # As one vector: a bias of hedgehog's maps hardly matters to normalised weights; its gradient is a difference
        # of numbers a hundred times as large.
        dparameters = torch.cat([gradient.float().flatten() for gradient in gradients])
        return {"y": y.detach(), "memory": state["memory"].detach(), "dx": dx, "dparameters": dparameters}


@pytest.mark.parametrize("tokens", [64, 200, 4096])
def test_an_odd_number_of_value_columns_agrees_in_bf16_with_every_gradient(tokens: int) -> None:
    """65 columns: fla 0.6.0 refuses them in 16 bits unless they are made even."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).cuda()

    q, k = normal(2, tokens, 4, 128).softmax(-1), normal(2, tokens, 2, 128).softmax(-1)
    v = torch.cat([normal(2, tokens, 2, 64), torch.ones(2, tokens, 2, 1, device="cuda")], -1)
    state = normal(2, 4, 128, 65).abs()
    results = []
    for backend in ("torch", "fla"):
        leaves = [tensor.bfloat16().requires_grad_() for tensor in (q, k, v)] + [state.clone().requires_grad_()]
        no_decay = torch.zeros(2, tokens, 4, device="cuda")
        outputs = choose("gated", backend, "cuda").kernel(*leaves[:3], no_decay, state_BNKV=leaves[3])
        toward = [torch.ones_like(outputs[0]), torch.ones_like(outputs[1])]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, toward)])
    for part, found, wanted in zip(("y", "state", "dq", "dk", "dv", "dstate"), results[1], results[0], strict=True):
        assert_near(found, wanted, 1.5e-2, part)


def test_weights_add_up_to_one_after_many_tokens_in_bf16() -> None:
    """With values of 1 every output is the sum of its weights."""
    case = TestFeatureMapOnFla()
    mixer = case.build({**FLA, "conv_width": 0, "qkv_bias": True})
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    mixer = mixer.to("cuda", torch.bfloat16)
    with torch.no_grad():
        mixer.v_proj.weight.zero_()
        mixer.v_proj.bias.fill_(1.0)
        y, state = mixer(case.inputs(20_000, batch=1).bfloat16())
        step, _ = mixer(case.inputs(1, batch=1).bfloat16(), state=state)
    assert state["memory"].dtype == torch.float32
    for found in (y, step):
        # Chunk states, numerator and denominator are rounded to 8 bits; a sum in bf16 would have stopped growing.
        assert float((found.float() - 1).abs().max()) <= 2**-6
