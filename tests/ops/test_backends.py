"""Choosing a kernel backend: what is here, what is not and why, and what is never used."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from linearize_kernels import usable
from linearize_kernels.usable import fla_gradient_fault

from linearize.errors import BackendError, PluginError, RecipeError
from linearize.ops.backends import available_backends, choose
from linearize.ops.channel_gated import channel_gated_recurrence
from linearize.ops.conv import causal_conv
from linearize.ops.delta import delta_recurrence
from linearize.ops.gated import gated_recurrence, ssd_recurrence
from linearize.ops.slots import slot_attention
from linearize.plugin import kernels
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import hookimpl
from linearize.plugin.specs import KernelSpec, MixerSpec
from linearize.testing import MixerConformance, check_kernel


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        ("gated", gated_recurrence), ("ssd", ssd_recurrence), ("channel_gated", channel_gated_recurrence),
        ("delta", delta_recurrence), ("slots", slot_attention), ("conv", causal_conv),
    ],
)  # fmt: skip
def test_auto_on_a_cpu_is_the_torch_reference(operation: str, function: object) -> None:
    choice = choose(operation, "auto", torch.device("cpu"))
    assert choice.kernel is function
    assert choice.describe().startswith(f"{operation} on cpu: torch {version('torch')}")


def test_a_choice_is_made_once() -> None:
    assert choose("ssd", "auto", "cpu") is choose("ssd", "auto", torch.device("cpu"))


def test_every_backend_is_listed_with_the_reason_against_it() -> None:
    found = available_backends("cpu")
    assert found.pop("torch") == ""
    assert set(found) == {"fla", "mamba_ssm", "causal_conv1d"}
    assert all("need a CUDA device" in reason for reason in found.values())


def test_a_named_backend_that_cannot_run_says_why_and_what_to_do() -> None:
    with pytest.raises(BackendError, match=r"'fla' was asked for 'ssd' on cpu, but .*CUDA device.* Use backend 'auto'"):
        choose("ssd", "fla", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_auto_for_cuda_on_a_machine_without_it_falls_back_and_says_why() -> None:
    choice = choose("ssd", "auto", "cuda")
    assert choice.backend == "torch"
    assert "not fla: its kernels need a CUDA device, and this machine shows none" in choice.describe()


def test_a_backend_without_the_operation_names_those_that_have_it() -> None:
    with pytest.raises(BackendError, match="'causal_conv1d' does not compute 'ssd'; these do: fla, mamba_ssm, torch"):
        choose("ssd", "causal_conv1d", "cpu")


@pytest.mark.parametrize(
    ("triton", "capability", "is_faulty"),
    [
        ("3.3.1", (9, 0), False), ("3.4.0", (9, 0), True), ("3.6.0", (9, 0), True), ("3.7.0", (9, 0), True),
        ("3.7.1", (9, 0), False), ("3.7.1+git12", (9, 0), False), ("3.10.0", (9, 0), False), ("3.6.0", (8, 0), False),
    ],
)  # fmt: skip
def test_fla_is_refused_on_hopper_with_the_versions_of_triton_that_break_its_gradients(
    triton: str, capability: tuple[int, int], is_faulty: bool
) -> None:
    assert ("wrong gradients" in fla_gradient_fault(triton, capability)) is is_faulty


@pytest.fixture
def faulty_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine with a Hopper GPU and Triton 3.6.0 tells, with fla and no other kernels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(usable, "find_spec", lambda name: None if name in ("mamba_ssm", "causal_conv1d") else name)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr("linearize.ops.backends._choices", SimpleNamespace())


@pytest.mark.usefixtures("faulty_hopper")
@pytest.mark.parametrize("name", ["auto", "fla"])
@pytest.mark.parametrize("operation", ["gated", "ssd", "channel_gated", "delta", "slots"])
def test_kernels_with_wrong_gradients_are_refused_with_the_remedy_and_not_passed_over(
    operation: str, name: str
) -> None:
    with pytest.raises(
        BackendError, match=r"wrong gradients on Hopper GPUs with triton 3.6.0.*'triton>=3.7.1'"
    ) as caught:
        choose(operation, name, "cuda")
    assert "Use backend 'auto'" not in caught.value.text  # which is refused, too
    assert choose(operation, "torch", "cuda").backend == "torch"


@pytest.mark.usefixtures("faulty_hopper")
def test_a_recipe_is_refused_at_check_where_its_kernels_would_give_wrong_gradients() -> None:
    from linearize.api import check_recipe

    recipe = {
        "run": {"name": "tiny"}, "teacher": {"type": "hovle"}, "student": {"mixer": {"type": "gla"}},
        "data": {"type": "glance"},
        "stages": [{"name": "align", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 2, "lr": 1e-3}],
    }  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, (), Plugins.discover())
    assert ("student.mixer.backend", "backend") in [(p.path, p.code) for p in caught.value.problems]


def doubled_gated(*tensors: Any, **more: Any) -> Any:
    """A stranger's kernel, which shows by its numbers that it ran."""
    y, state = gated_recurrence(*tensors, **more)
    return 2 * y, state


def on_cpu_only(operation: str, device_type: str) -> str:
    return "" if device_type == "cpu" else f"'{operation}' was written for CPUs"


@pytest.fixture
def strangers_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelSpec]:
    module = ModuleType("stranger_kernels")
    module.doubled_gated, module.on_cpu_only = doubled_gated, on_cpu_only  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stranger_kernels", module)
    spec = KernelSpec(
        name="swift_gated", operation="gated", backend="swift", build="stranger_kernels:doubled_gated",
        obstacle="stranger_kernels:on_cpu_only", preference=30, source="https://example.org",
    )  # fmt: skip
    Plugins.discover().add(PluginOf(spec), name="stranger")
    yield spec
    kernels.withdraw(spec)


class PluginOf:
    def __init__(self, *specs: KernelSpec) -> None:
        self.specs = specs

    @hookimpl
    def linearize_register(self, register: Any) -> None:
        for spec in self.specs:
            register(spec)


def test_a_strangers_kernel_is_preferred_named_and_gone_with_its_plug_in(strangers_kernel: KernelSpec) -> None:
    before = choose("gated", "torch", "cpu")
    for name in ("auto", "swift"):
        assert choose("gated", name, "cpu").kernel is doubled_gated
    assert choose("delta", "auto", "cpu").backend == "torch"
    assert available_backends("cuda")["swift"] == "'gated' was written for CPUs"
    with pytest.raises(BackendError, match="'swift' does not compute 'delta'"):
        choose("delta", "swift", "cpu")
    kernels.withdraw(strangers_kernel)
    assert choose("gated", "auto", "cpu").kernel is before.kernel


def test_one_token_is_the_references_unless_a_kernel_is_made_for_it(strangers_kernel: KernelSpec) -> None:
    assert choose("gated", "auto", "cpu", num_tokens=2).backend == "swift"
    assert choose("gated", "auto", "cpu", num_tokens=1).backend == "torch"
    assert choose("gated", "swift", "cpu", num_tokens=1).backend == "swift"
    kernels.withdraw(strangers_kernel)
    for_steps = dataclasses.replace(strangers_kernel, step_preference=1)
    Plugins.discover().add(PluginOf(for_steps), name="stranger")
    assert choose("gated", "auto", "cpu", num_tokens=1).backend == "swift"
    kernels.withdraw(for_steps)


def test_a_mixer_runs_on_a_strangers_kernel(strangers_kernel: KernelSpec) -> None:
    del strangers_kernel
    spec = Plugins.discover().registry.get(MixerSpec, "retnet")
    outputs = []
    for backend in ("torch", "swift"):
        config = spec.config_class().model_validate({"backend": backend, "output_norm": False, "gate": False})
        mixer = spec.builder()(config, MixerConformance.site)
        mixer.initialize("scratch", torch.Generator().manual_seed(0))
        outputs.append(mixer(torch.ones(1, 3, 12))[0])
    torch.testing.assert_close(outputs[1], 2 * outputs[0])


def test_a_misspelt_backend_gets_its_did_you_mean() -> None:
    with pytest.raises(BackendError, match=r"these do: fla, mamba_ssm, torch\. Did you mean 'mamba_ssm'"):
        choose("ssd", "mamba_ssn", "cpu")


def test_two_kernels_of_one_backend_and_operation_are_refused() -> None:
    other = KernelSpec(name="x", operation="gated", backend="fla", build="a:b", source="https://example.org")
    with pytest.raises(PluginError, match="kernel 'x' computes 'gated' for backend 'fla', as kernel 'fla_gated' does"):
        Plugins.discover().add(PluginOf(other), name="stranger")


def test_of_a_plug_in_that_is_refused_no_kernel_is_ever_chosen() -> None:
    spec = KernelSpec(
        name="first", operation="gated", backend="swift", build="a:b", preference=30, source="https://example.org"
    )
    refused = dataclasses.replace(spec, name="second", backend="fla")
    with pytest.raises(PluginError, match="kernel 'second' computes 'gated' for backend 'fla'"):
        Plugins.discover().add(PluginOf(spec, refused), name="stranger")
    assert choose("gated", "auto", "cpu").kernel is gated_recurrence
    assert "swift" not in available_backends("cpu")


def gated_inputs() -> dict[str, Any]:
    shapes = {"q_BTNK": (2, 9, 4, 5), "k_BTMK": (2, 9, 2, 5), "v_BTMV": (2, 9, 2, 3), "g_BTN": (2, 9, 4)}
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**drawn, "g_BTN": -drawn["g_BTN"].exp(), "state_BNKV": torch.ones(2, 4, 5, 3)}


def test_the_kit_passes_a_right_kernel_and_names_what_is_wrong_with_another() -> None:
    def detached_decay(*, g_BTN: torch.Tensor, **more: Any) -> Any:
        return gated_recurrence(**more, g_BTN=g_BTN.detach())

    def by_small_chunks(**more: Any) -> Any:
        return gated_recurrence(**more, chunk_size=2)

    check_kernel("gated", by_small_chunks, gated_inputs(), 1e-5)
    with pytest.raises(AssertionError, match="the gradient of g_BTN of 'gated'"):
        check_kernel("gated", detached_decay, gated_inputs(), 1e-5)
    with pytest.raises(AssertionError, match="output 0 of 'gated'"):
        check_kernel("gated", lambda **more: doubled_gated(**more), gated_inputs(), 1e-5)
