"""Which code computes a recurrence or a convolution on this machine: probed when first asked, chosen once, printable.

The torch reference defines every operation; fla, mamba_ssm and causal_conv1d are faster ways to the same numbers.
Operations: "gated" (:func:`linearize.ops.gated.gated_recurrence`), "ssd" (:func:`linearize.ops.gated.ssd_recurrence`),
"channel_gated" (:func:`linearize.ops.channel_gated.channel_gated_recurrence`), "delta"
(:func:`linearize.ops.delta.delta_recurrence`), "slots" (:func:`linearize.ops.slots.slot_attention`) and "conv"
(:func:`linearize.ops.conv.causal_conv`); a backend's kernel takes and returns what the reference does.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from linearize.errors import BackendError

INSTALL_HINT = "pip install 'linearize[cuda]' on a machine with a CUDA device"
# flash-linear-attention issue 640: its gated backward is wrong on Hopper with these Triton versions; 3.7.1 ends it.
FAULTY_TRITON = ((3, 4, 0), (3, 7, 1))
HOPPER = 9


@dataclass(frozen=True, slots=True)
class Backend:
    """One source of kernels.

    Attributes:
        kernels: operation -> "module:function"; importing the module imports the package.
        package: what must be importable; empty: nothing.
        distribution: the name whose version is printed.
    """

    name: str
    kernels: Mapping[str, str]
    package: str = ""
    distribution: str = ""


BACKENDS: tuple[Backend, ...] = (
    Backend("fla", {
        "gated": "linearize.ops.fla_kernels:gated_recurrence",
        "ssd": "linearize.ops.fla_kernels:ssd_recurrence",
        "channel_gated": "linearize.ops.fla_channel_kernels:channel_gated_recurrence",
        "delta": "linearize.ops.fla_delta_kernels:delta_recurrence",
        "slots": "linearize.ops.fla_slot_kernels:slot_attention",
        "conv": "linearize.ops.fla_kernels:causal_conv",
    }, "fla", "flash-linear-attention"),
    Backend("mamba_ssm", {"ssd": "linearize.ops.mamba_ssm_kernels:ssd_recurrence"}, "mamba_ssm", "mamba-ssm"),
    Backend("causal_conv1d", {
        "conv": "linearize.ops.causal_conv1d_kernels:causal_conv",
    }, "causal_conv1d", "causal-conv1d"),
    Backend("torch", {
        "gated": "linearize.ops.gated:gated_recurrence",
        "ssd": "linearize.ops.gated:ssd_recurrence",
        "channel_gated": "linearize.ops.channel_gated:channel_gated_recurrence",
        "delta": "linearize.ops.delta:delta_recurrence",
        "slots": "linearize.ops.slots:slot_attention",
        "conv": "linearize.ops.conv:causal_conv",
    }, "", "torch"),
)  # fmt: skip
"""In the order in which "auto" prefers them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What will compute one operation on one kind of device.

    Attributes:
        kernel: takes and returns what the torch reference of ``operation`` does.
        passed_over: backends that "auto" would have preferred, with the reason against each.
    """

    operation: str
    backend: str
    device: str
    kernel: Callable[..., Any]
    passed_over: Mapping[str, str]

    def describe(self) -> str:
        """One line for the plan and the log: the backend, its version, and why no faster one."""
        distribution = next(backend.distribution for backend in BACKENDS if backend.name == self.backend)
        text = f"{self.operation} on {self.device}: {self.backend} {_version(distribution)}"
        if self.passed_over and self.device != "cpu":
            text += "; not " + "; not ".join(f"{name}: {why}" for name, why in self.passed_over.items())
        return text


def available_backends(device: torch.device | str | None = None) -> dict[str, str]:
    """Every backend's name with the reason why it cannot be used on ``device``, empty for those that can.

    ``device`` None: the CUDA device if there is one, else the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {backend.name: _obstacle(backend.name, torch.device(device).type) for backend in BACKENDS}


def choose(operation: str, name: str, device: torch.device | str) -> Choice:
    """The kernel of backend ``name`` ("auto": the best that is right) for ``operation`` on ``device``.

    Raises:
        BackendError: the named backend has no such operation or cannot run here; says why and what to do.
    """
    choice: Choice = getattr(_choices, _choice_name(operation, name, torch.device(device).type))
    return choice


class _Choices:
    """Holds the choices made so far as attributes, which a compiled graph reads anew where a dict's keys are frozen."""


_choices = _Choices()


@torch.compiler.assume_constant_result
def _choice_name(operation: str, name: str, device_type: str) -> str:
    """Where the choice lies, made now if it was not; run by the interpreter, not traced into a compiled graph."""
    attribute = f"{operation} {name} {device_type}"
    if not hasattr(_choices, attribute):
        setattr(_choices, attribute, _choose(operation, name, device_type))
    return attribute


@functools.cache
def _choose(operation: str, name: str, device_type: str) -> Choice:
    passed_over: dict[str, str] = {}
    able = [backend for backend in BACKENDS if operation in backend.kernels]
    if name not in ("auto", *(backend.name for backend in able)):
        names = ", ".join(sorted(backend.name for backend in able))
        raise BackendError(f"backend '{name}' does not compute '{operation}'; these do: {names}. Or use 'auto'.")
    for backend in able:
        if name not in ("auto", backend.name):
            continue
        obstacle = _obstacle(backend.name, device_type)
        if not obstacle:
            return Choice(operation, backend.name, device_type, _load(backend.kernels[operation]), passed_over)
        passed_over[backend.name] = obstacle
    raise BackendError(
        f"backend '{name}' was asked for '{operation}' on {device_type}, but {passed_over[name]}. "
        f"Use backend 'auto' or 'torch', or put that right."
    )


@functools.cache
def _obstacle(name: str, device_type: str) -> str:
    """Why a backend cannot be used on a kind of device; empty when it can."""
    backend = next(backend for backend in BACKENDS if backend.name == name)
    if not backend.package:
        return ""
    if device_type != "cuda":
        return f"its kernels need a CUDA device, not {device_type}"
    if not torch.cuda.is_available():
        return "its kernels need a CUDA device, and this machine shows none"
    for package in ("triton", backend.package):
        if find_spec(package) is None:
            return f"the package '{package}' is not installed ({INSTALL_HINT})"
    try:
        triton_version = importlib.import_module("triton").__version__
        fault = fla_gradient_fault(triton_version, torch.cuda.get_device_capability())
        # On AMD the same numbers mean another chip.
        if name == "fla" and fault and torch.version.hip is None:
            return fault
        for target in backend.kernels.values():
            _load(target)
    except Exception as error:
        # Kernel packages fail in many ways at import: missing compiled parts, driver mismatches, version checks.
        return f"its import failed with {type(error).__name__}: {error}"
    return ""


def fla_gradient_fault(triton_version: str, capability: tuple[int, int]) -> str:
    """Why fla's gated kernels would give wrong gradients with this Triton on this GPU; empty when they do not."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", triton_version)[:3])
    low, high = FAULTY_TRITON
    if capability[0] == HOPPER and low <= numbers < high:
        return (
            f"its gated kernels compute wrong gradients on Hopper GPUs with triton {triton_version} "
            f"(flash-linear-attention issue 640); triton >= 3.7.1 is right: pip install -U 'triton>=3.7.1'"
        )
    return ""


def _load(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
