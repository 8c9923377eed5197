"""Choosing a kernel backend: what is here, what is not and why, and what is never used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from linearize.errors import BackendError
from linearize.ops.backends import available_backends, choose, fla_gradient_fault
from linearize.ops.channel_gated import channel_gated_recurrence
from linearize.ops.conv import causal_conv
from linearize.ops.delta import delta_recurrence
from linearize.ops.gated import gated_recurrence, ssd_recurrence
from linearize.ops.slots import slot_attention


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
    assert choice.describe().startswith(f"{operation} on cpu: torch {torch.__version__}")


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


def test_importing_the_module_probes_nothing() -> None:
    code = "import sys, linearize.ops.backends; sys.exit(bool({'fla', 'triton', 'mamba_ssm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
