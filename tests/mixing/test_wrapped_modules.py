"""Whatever wraps or replaces a module of a mixer takes effect, the same for a whole sequence and token by token.

Letters: B batch, T tokens, D model width, N query heads, V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linearize_sliding_window.combined import SwaLinearMixer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from linearize.errors import PluginError
from linearize.plugin.specs import MixerSpec
from linearize.protocols import SiteNorm
from linearize.testing import MixerConformance
from linearize.testing.mixer_inputs import installed_plugins
from linearize.testing.numbers import distance, draw, positions_of

TOKENS = 4
SITES = {
    "sliding_window": replace(MixerConformance.site, qk_norm=SiteNorm(over="head", has_bias=True)),
}
"""Sites of which the mixer makes more modules than of others."""
OPTIONS: dict[str, dict[str, Any]] = {
    "swa_linear": {"window": 3, "linear": {"type": "gla", "qk_norm": "rms"}},
    "feature_map": {"output_norm": True, "gate": True},
    "mamba2": {"qk_norm": True},
    "sliding_window": {"window": 3},
}
"""What gives a mixer all the modules that it can have; of the others it is qk_norm = "rms" where they know it."""


def build(name: str) -> Any:
    spec = installed_plugins().registry.get(MixerSpec, name)
    model = spec.config_class()
    options = OPTIONS.get(name, {"qk_norm": "rms"} if "qk_norm" in model.model_fields else {})
    torch.manual_seed(0)
    mixer = spec.builder()(model.model_validate(options), SITES.get(name, MixerConformance.site))
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    return mixer.double().eval()


def run(mixer: Any, x_BTD: Tensor, start: int = 0, state: Any = None) -> tuple[Tensor, Any]:
    position = positions_of(list(range(start, start + x_BTD.shape[1])), mixer.site.key_dim, x_BTD)
    return mixer(x_BTD, position=position, state=state)


@torch.no_grad()
def prefill_and_steps(mixer: Any) -> tuple[Tensor, Tensor]:
    x_BTD = draw(2, TOKENS, mixer.site.hidden_size, seed=0, dtype=torch.float64, device="cpu")
    steps, state = [], None
    for t in range(TOKENS):
        y, state = run(mixer, x_BTD[:, t : t + 1], t, state)
        steps.append(y)
    return run(mixer, x_BTD)[0], torch.cat(steps, 1)


def modules_with_weights(mixer: nn.Module) -> list[str]:
    return [name for name, module in mixer.named_modules() if module._parameters and name]


def put(mixer: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(mixer.get_submodule(parent), attribute, module)


def bent(output: Any) -> Any:
    """What a module returned, with its tensor bent; a convolution's state stays."""
    if isinstance(output, tuple):
        return (bent(output[0]), *output[1:])
    return output + 0.3 * torch.tanh(2 * output)


class Wrapper(nn.Module):
    """As adapters wrap: the module inside is called, and something is added."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **named: Any) -> Any:
        return bent(self.inner(*args, **named))


class Bent(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return bent(weight)


def hook(mixer: nn.Module, name: str) -> None:
    mixer.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: bent(output))


def pre_hook(mixer: nn.Module, name: str) -> None:
    """As pruning and the older spectral norm do: the weight is made anew before every call."""
    module = mixer.get_submodule(name)
    original = module.weight.detach().clone()

    def remake(module: nn.Module, _inputs: Any) -> None:
        module.weight.data = bent(original)

    module.register_forward_pre_hook(remake)


def forward_on_the_instance(mixer: nn.Module, name: str) -> None:
    """As accelerate's hooks for offloading do."""
    module = mixer.get_submodule(name)
    inner = module.forward
    module.forward = lambda *args, **named: bent(inner(*args, **named))  # type: ignore[method-assign]


def parametrization(mixer: nn.Module, name: str) -> None:
    parametrize.register_parametrization(mixer.get_submodule(name), "weight", Bent())


def wrapper(mixer: nn.Module, name: str) -> None:
    put(mixer, name, Wrapper(mixer.get_submodule(name)))


def subclass(mixer: nn.Module, name: str) -> None:
    """As FSDP2 and some quantisers do: the module's class becomes a subclass of what it was."""
    module = mixer.get_submodule(name)
    kind = type(module)
    module.__class__ = type("Sub", (kind,), {"forward": lambda self, *a, **k: bent(kind.forward(self, *a, **k))})


CHANGES: list[Callable[[nn.Module, str], None]] = [
    hook, pre_hook, forward_on_the_instance, parametrization, wrapper, subclass,
]  # fmt: skip
MIXERS = sorted(spec.name for spec in installed_plugins().registry.all(MixerSpec))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MIXERS)
def test_what_wraps_or_replaces_a_module_takes_effect_in_prefill_as_in_steps(
    name: str, change: Callable[[nn.Module, str], None]
) -> None:
    before, _ = prefill_and_steps(build(name))
    names = modules_with_weights(build(name))
    assert len(names) >= 3
    for module in names:
        mixer = build(name)
        if change in (pre_hook, parametrization) and not hasattr(mixer.get_submodule(module), "weight"):
            continue
        change(mixer, module)
        whole, steps = prefill_and_steps(mixer)
        assert distance(whole, before) > 1e-6, f"{change.__name__} on '{module}' has no effect"
        assert distance(steps, whole) < 1e-9, f"with {change.__name__} on '{module}' steps differ from prefill"


class Quantised(nn.Module):
    """A linear layer in 8 bits, whose weight nobody but itself can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x) * self.scale, self.bias)


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_of_quantised_linear_layers_is_near_the_one_it_came_from(name: str) -> None:
    mixer = build(name)
    before, _ = prefill_and_steps(mixer)
    for path, module in list(mixer.named_modules()):
        if type(module) is nn.Linear:
            put(mixer, path, Quantised(module))
    whole, steps = prefill_and_steps(mixer)
    assert 1e-6 < distance(whole, before) < 0.1
    assert distance(steps, whole) < 1e-9


def test_a_norm_over_other_numbers_takes_the_place_of_the_output_norm() -> None:
    mixer = build("retnet")
    mixer.g_norm = nn.RMSNorm((4, 5), eps=1e-5).double()
    whole, steps = prefill_and_steps(mixer)
    mixer.g_norm = Wrapped4By5().double()
    assert distance(whole, prefill_and_steps(mixer)[0]) < 1e-12
    assert distance(steps, whole) < 1e-9


class Wrapped4By5(nn.Module):
    """RMSNorm over all heads together, by its formula."""

    def forward(self, y: Tensor) -> Tensor:
        return y * (y.square().mean((-2, -1), keepdim=True) + 1e-5).rsqrt()


def joint() -> SwaLinearMixer:
    spec = installed_plugins().registry.get(MixerSpec, "swa_linear")
    options = {"window": 3, "combine": "joint", "linear": {"type": "feature_map"}}
    mixer = spec.builder()(spec.config_class().model_validate(options), MixerConformance.site)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    return mixer.double().eval()


@pytest.mark.parametrize("branch", ["window", "linear"])
@pytest.mark.parametrize("change", [hook, forward_on_the_instance, wrapper], ids=lambda change: change.__name__)
def test_what_a_joint_output_would_pass_by_is_refused(change: Callable[[nn.Module, str], None], branch: str) -> None:
    mixer = joint()
    change(mixer, branch)
    with pytest.raises(PluginError, match=f"branch '{branch}'.*around the modules inside"):
        prefill_and_steps(mixer)


def test_what_wraps_a_module_inside_a_joint_output_takes_effect() -> None:
    before, _ = prefill_and_steps(joint())
    for module in modules_with_weights(joint()):
        mixer = joint()
        hook(mixer, module)
        whole, steps = prefill_and_steps(mixer)
        assert distance(whole, before) > 1e-6, module
        assert distance(steps, whole) < 1e-9, module


def lora(name: str, targets: list[str]) -> Any:
    peft = pytest.importorskip("peft", reason="peft makes the adapters")
    model = nn.ModuleDict({"mixer": build(name)})
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    return peft.inject_adapter_in_model(config, model)["mixer"].double()


@pytest.mark.parametrize("name", ["gated_delta_net", "mamba3", "sliding_window", "gla"])
def test_lora_of_peft_takes_effect_and_gets_gradients(name: str) -> None:
    before, _ = prefill_and_steps(build(name))
    mixer = lora(name, ["q_proj", "k_proj", "v_proj"])
    whole, steps = prefill_and_steps(mixer)
    assert distance(whole, before) > 1e-3
    assert distance(steps, whole) < 1e-9
    x = draw(2, TOKENS, mixer.site.hidden_size, seed=0, dtype=torch.float64, device="cpu")
    run(mixer, x)[0].square().sum().backward()
    adapters = [parameter for path, parameter in mixer.named_parameters() if "lora" in path]
    assert len(adapters) == 6
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapters)
