"""The mmMamba recipe: the three-stage schedule and the published checkpoint format."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import FormatSpec, ScheduleSpec

PAPER = "https://arxiv.org/abs/2502.13145"
CODE = "https://github.com/hustvl/mmMamba"


@hookimpl
def linearize_register(register: Register) -> None:
    """The schedule and the checkpoint format."""
    register(ScheduleSpec(
        name="mmmamba", build="linearize_mmmamba.schedule:MmMambaSchedule",
        config="linearize_mmmamba.schedule:MmMambaScheduleConfig", source=PAPER,
        summary="align new parameters, align the mixer, distil; corrected, as printed, or as released"))  # fmt: skip
    register(FormatSpec(
        name="mmmamba", build="linearize_mmmamba.format:MmMambaFormat", source=CODE,
        model_types=frozenset({"mmMamba_chat"}),
        summary="checkpoints that hustvl/mmMamba published, linear and hybrid"))  # fmt: skip
