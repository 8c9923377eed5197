"""Which code computes a recurrence or a convolution on this machine: probed when first asked, chosen once, printable.

The torch reference defines every operation; kernels that plug-ins register (:class:`linearize.plugin.specs.KernelSpec`)
are faster ways to the same numbers. Operations: "gated" (:func:`linearize.ops.gated.gated_recurrence`), "ssd"
(:func:`linearize.ops.gated.ssd_recurrence`), "channel_gated"
(:func:`linearize.ops.channel_gated.channel_gated_recurrence`), "delta" (:func:`linearize.ops.delta.delta_recurrence`),
"slots" (:func:`linearize.ops.slots.slot_attention`) and "conv" (:func:`linearize.ops.conv.causal_conv`); a kernel takes
and returns what the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from linearize.errors import BackendError, did_you_mean
from linearize.plugin.kernels import generation, registered_kernels
from linearize.plugin.specs import KernelSpec, load_target

AUTO, REFERENCE = "auto", "torch"


@dataclass(frozen=True, slots=True)
class Choice:
    """What will compute one operation on one kind of device.

    Attributes:
        kernel: takes and returns what the torch reference of ``operation`` does.
        passed_over: backends that "auto" would have preferred, with the reason against each.
        distribution: whose version is printed.
    """

    operation: str
    backend: str
    device: str
    kernel: Callable[..., Any]
    passed_over: Mapping[str, str]
    distribution: str = ""

    def describe(self) -> str:
        """One line for the plan and the log: the backend, its version, and why no faster one."""
        text = f"{self.operation} on {self.device}: {self.backend} {_version(self.distribution)}"
        if self.passed_over and self.device != "cpu":
            text += "; not " + "; not ".join(f"{name}: {why}" for name, why in self.passed_over.items())
        return text


def available_backends(device: torch.device | str | None = None) -> dict[str, str]:
    """Every backend's name with the reason why it cannot be used on ``device``, empty for those that can.

    Of a backend with several kernels, the first reason against one. ``device`` None: the CUDA device if there is one,
    else the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, str] = {}
    for spec in _by_preference(registered_kernels()):
        found[spec.backend] = found.get(spec.backend) or "".join(_obstacle(spec, torch.device(device).type))
    return found


def kernels_of(backend: str) -> dict[str, str]:
    """The operations that a backend computes -> "package.module:function" of its kernel."""
    return {spec.operation: spec.build for spec in registered_kernels() if spec.backend == backend}


def choose(operation: str, name: str, device: torch.device | str, *, num_tokens: int = 0) -> Choice:
    """The kernel of backend ``name`` ("auto": the best that is right) for ``operation`` on ``device``.

    For a single token "auto" goes by ``KernelSpec.step_preference``, which most kernels leave below the reference's:
    that is a few small operations, which a compiled step fuses with what stands around them.

    Args:
        num_tokens: T of the call; 0 where it is not known.

    Raises:
        BackendError: the named backend has no such operation or cannot run here, or "auto" would pass over one that is
            there and computes wrong numbers, for the slow reference; says why and what to do.
    """
    is_step = name == AUTO and num_tokens == 1
    choice: Choice = getattr(_choices, _choice_name(operation, name, torch.device(device).type, is_step))
    return choice


class _Choices:
    """Holds the choices made so far as attributes, which a compiled graph reads anew where a dict's keys are frozen."""


_choices = _Choices()


def _choice_name(operation: str, name: str, device_type: str, is_step: bool) -> str:
    """Where the choice lies, made now if it was not; run by the interpreter, not traced into a compiled graph."""
    attribute = f"{operation} {name} {device_type} {is_step} {generation()}"
    if not hasattr(_choices, attribute):
        setattr(_choices, attribute, _choose(operation, name, device_type, is_step, registered_kernels()))
    return attribute


# What torch.compiler.assume_constant_result sets; calling that imports the compiler, which takes seconds.
_choice_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(operation: str, name: str, device_type: str, is_step: bool, kernels: tuple[KernelSpec, ...]) -> Choice:
    able = [spec for spec in _by_preference(kernels, is_step) if spec.operation == operation]
    names = [spec.backend for spec in able]
    if name not in (AUTO, *names):
        raise BackendError(
            f"backend '{name}' does not compute '{operation}'; these do: {', '.join(sorted(names))}."
            f"{did_you_mean(name, names)} Or use 'auto'."
        )
    passed_over: dict[str, str] = {}
    faults: dict[str, str] = {}
    for spec in able:
        if name not in (AUTO, spec.backend):
            continue
        obstacle, fault = _obstacle(spec, device_type)
        if fault:
            faults[spec.backend] = fault
        if obstacle or fault:
            passed_over[spec.backend] = obstacle or fault
            continue
        if spec.backend == REFERENCE and faults:
            break
        return Choice(operation, spec.backend, device_type, spec.builder(), passed_over, spec.distribution)
    if name == AUTO and faults:
        backend, fault = next(iter(faults.items()))
        raise BackendError(
            f"backend 'auto' would take '{backend}' for '{operation}' on {device_type}, but {fault}. Put "
            'that right, or set backend = "torch", which is right and slow'
        )
    # With such a fault "auto" may be refused as well.
    others = "'torch'" if faults else "'auto' or 'torch'"
    raise BackendError(
        f"backend '{name}' was asked for '{operation}' on {device_type}, but {passed_over[name]}. "
        f"Use backend {others}, or put that right."
    )


def _by_preference(kernels: tuple[KernelSpec, ...], is_step: bool = False) -> list[KernelSpec]:
    def rank(spec: KernelSpec) -> int:
        return -spec.step_preference if is_step and spec.backend != REFERENCE else -spec.preference

    return sorted(kernels, key=lambda spec: (rank(spec), spec.backend))


def _obstacle(spec: KernelSpec, device_type: str) -> tuple[str, str]:
    """Why a kernel is not there, and what is wrong with one that is; both empty when it can be used."""
    if not spec.obstacle:
        return "", ""
    try:
        found = load_target(spec.obstacle, f"kernel '{spec.name}'")(spec.operation, device_type)
        if not found:
            spec.builder()
    except BackendError as error:
        return "", str(error)
    except Exception as error:
        # Kernel packages fail in many ways at import: missing compiled parts, driver mismatches, version checks.
        return f"its import failed with {type(error).__name__}: {error}", ""
    return str(found), ""


def _version(distribution: str) -> str:
    try:
        return version(distribution) if distribution else ""
    except PackageNotFoundError:
        return ""
