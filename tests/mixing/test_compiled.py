"""Every mixer compiles into one graph, forward and backward, with the numbers that it has without.

Letters: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from linearize.plugin.specs import MixerSpec
from linearize.testing import MixerConformance
from linearize.testing.mixer_inputs import installed_plugins
from linearize.testing.numbers import assert_near, draw, positions_of

SITE = MixerConformance.site
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "swa_linear": [
        {"window": 3, "linear": {"type": "mamba2"}},
        {"window": 3, "combine": "joint", "linear": {"type": "feature_map"}},
    ],
    "sliding_window": [{"window": 3, "sinks": 2}],
    "mamba2": [{"qk_norm": True, "conv_width": 4}],
    "feature_map": [{"output_norm": True, "gate": True}],
}
"""Options that reach more of a mixer's code than its defaults."""
TRAINED = {"feature_map", "gated_delta_net", "gla", "gsa", "kda", "mamba2", "mamba3", "sliding_window", "swa_linear"}
"""Mixers that differ in what their backward goes through; the others differ from them in how they make a decay."""
CASES = [
    (spec.name, options)
    for spec in installed_plugins().registry.all(MixerSpec)
    for options in VARIANTS.get(spec.name, [{}])
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(name: str, options: dict[str, Any]) -> Any:
    spec = installed_plugins().registry.get(MixerSpec, name)
    mixer = spec.builder()(spec.config_class().model_validate(options), SITE)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    return mixer.double()


def gradients(call: Any, mixer: Any, length: int, **more: Any) -> tuple[Tensor, Tensor]:
    """The output, and every gradient of its squares laid end to end."""
    x = draw(2, length, SITE.hidden_size, seed=0, dtype=torch.float64, device="cpu").requires_grad_()
    leaves = [x, *mixer.parameters()]
    y = call(x, position=positions_of(list(range(length)), SITE.key_dim, x), **more)[0]
    found = torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True, allow_unused=True)
    return y.detach(), torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] in TRAINED])
def test_a_mixer_compiles_into_one_graph_with_the_numbers_that_it_has_without(
    name: str, options: dict[str, Any]
) -> None:
    mixer = build(name, options)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, :3] = False
    segments = torch.tensor([[0] * 4 + [1] * 5, [4] * 9])
    state = mixer.empty_state(2, device="cpu", dtype=torch.float64)
    everything = {"valid_BT": valid, "segments_BT": segments, "state": state}
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    found, wanted = gradients(compiled, mixer, 9, **everything), gradients(mixer, mixer, 9, **everything)
    assert_near(found[0], wanted[0], 1e-9, "the output, compiled")
    assert_near(found[1], wanted[1], 1e-9, "the gradients, compiled")


@pytest.mark.parametrize(("name", "options"), CASES)
def test_neither_a_first_call_nor_a_step_breaks_the_graph(name: str, options: dict[str, Any]) -> None:
    mixer = build(name, options)
    state = mixer.empty_state(2, device="cpu", dtype=torch.float64)
    for length, carried in ((5, None), (1, state)):
        x = draw(2, length, SITE.hidden_size, seed=0, dtype=torch.float64, device="cpu")
        position = positions_of(list(range(length)), SITE.key_dim, x)
        found = torch._dynamo.explain(mixer)(x, position=position, state=carried)
        assert found.graph_count == 1, [str(reason.reason) for reason in found.break_reasons]
        torch._dynamo.reset()
