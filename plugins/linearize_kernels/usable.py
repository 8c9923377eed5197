"""Why a kernel package cannot be used on a kind of device; asked before a kernel's module is imported."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec

import torch

from linearize.errors import BackendError

INSTALL_HINT = "pip install 'linearize[cuda]' on a machine with a CUDA device"
# flash-linear-attention issue 640: its gated backward is wrong on Hopper with these Triton versions; 3.7.1 ends it.
FAULTY_TRITON = ((3, 4, 0), (3, 7, 1))
HOPPER = 9


def fla(operation: str, device_type: str) -> str:
    """Of flash-linear-attention; empty where it can be used.

    Raises:
        BackendError: it is there, and would train with wrong gradients; says what to install.
    """
    found = _obstacle("fla", device_type)
    # On AMD the same numbers mean another chip.
    if not found and operation != "conv" and torch.version.hip is None:
        fault = fla_gradient_fault(importlib.import_module("triton").__version__, torch.cuda.get_device_capability())
        if fault:
            raise BackendError(fault)
    return found


def mamba_ssm(operation: str, device_type: str) -> str:
    """Of mamba-ssm; empty where it can be used."""
    del operation
    return _obstacle("mamba_ssm", device_type)


def causal_conv1d(operation: str, device_type: str) -> str:
    """Of causal-conv1d; empty where it can be used."""
    del operation
    return _obstacle("causal_conv1d", device_type)


def _obstacle(package: str, device_type: str) -> str:
    if device_type != "cuda":
        return f"its kernels need a CUDA device, not {device_type}"
    if not torch.cuda.is_available():
        return "its kernels need a CUDA device, and this machine shows none"
    for name in ("triton", package):
        if find_spec(name) is None:
            return f"the package '{name}' is not installed ({INSTALL_HINT})"
    return ""


def fla_gradient_fault(triton_version: str, capability: tuple[int, int]) -> str:
    """Why fla's gated kernels would give wrong gradients with this Triton on this GPU; empty when they do not."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", triton_version)[:3])
    low, high = FAULTY_TRITON
    if capability[0] == HOPPER and low <= numbers < high:
        return (
            f"its gated kernels compute wrong gradients on Hopper GPUs with triton {triton_version} "
            f"(flash-linear-attention issue 640); expected triton >= 3.7.1: pip install -U 'triton>=3.7.1'"
        )
    return ""
