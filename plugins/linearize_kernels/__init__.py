"""The kernels of flash-linear-attention, mamba-ssm and causal-conv1d for the recurrences that linearize.ops defines."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import KernelSpec

FLA = "https://github.com/fla-org/flash-linear-attention"
# What "auto" prefers, if several are usable; the torch reference has 0.
FLA_FIRST, THEN = 20, 10


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the kernels of the backends "fla", "mamba_ssm" and "causal_conv1d"."""
    for operation, target in {
        "gated": "linearize_kernels.fla_kernels:gated_recurrence",
        "ssd": "linearize_kernels.fla_kernels:ssd_recurrence",
        "channel_gated": "linearize_kernels.fla_channel_kernels:channel_gated_recurrence",
        "delta": "linearize_kernels.fla_delta_kernels:delta_recurrence",
        "slots": "linearize_kernels.fla_slot_kernels:slot_attention",
        "conv": "linearize_kernels.fla_kernels:causal_conv",
    }.items():
        register(KernelSpec(
            name=f"fla_{operation}", operation=operation, backend="fla", build=target, source=FLA,
            obstacle="linearize_kernels.usable:fla", distribution="flash-linear-attention", preference=FLA_FIRST,
            summary=f"'{operation}' by Triton kernels of flash-linear-attention"))  # fmt: skip
    register(KernelSpec(
        name="mamba_ssm_ssd", operation="ssd", backend="mamba_ssm",
        build="linearize_kernels.mamba_ssm_kernels:ssd_recurrence", source="https://github.com/state-spaces/mamba",
        obstacle="linearize_kernels.usable:mamba_ssm", distribution="mamba-ssm", preference=THEN,
        summary="'ssd' by Mamba-2's own Triton kernels"))  # fmt: skip
    register(KernelSpec(
        name="causal_conv1d_conv", operation="conv", backend="causal_conv1d",
        build="linearize_kernels.causal_conv1d_kernels:causal_conv",
        source="https://github.com/Dao-AILab/causal-conv1d",
        obstacle="linearize_kernels.usable:causal_conv1d", distribution="causal-conv1d", preference=THEN,
        summary="'conv' by compiled CUDA kernels"))  # fmt: skip
