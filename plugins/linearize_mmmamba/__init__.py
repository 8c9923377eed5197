"""The mmMamba recipe: seeding from attention, the three-stage schedule, and the published checkpoint format."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import FormatSpec, ScheduleSpec, SeederSpec

PAPER = "https://arxiv.org/abs/2502.13145"
CODE = "https://github.com/hustvl/mmMamba"


@hookimpl
def linearize_register(register: Register) -> None:
    """Three seeders, the schedule, the checkpoint format."""
    register(SeederSpec(
        name="mimic", build="linearize_mmmamba.seeding:mimic", source=PAPER,
        summary="q, k, v from the teacher, the rest set so that the mixer starts near attention"))  # fmt: skip
    register(SeederSpec(
        name="copy_qkv", build="linearize_mmmamba.seeding:copy_qkv", source=PAPER,
        summary="q, k, v from the teacher, the rest fresh"))  # fmt: skip
    register(SeederSpec(
        name="scratch", build="linearize_mmmamba.seeding:scratch", source=PAPER,
        summary="everything fresh; only the output projection is the teacher's"))  # fmt: skip
    register(ScheduleSpec(
        name="mmmamba", build="linearize_mmmamba.schedule:MmMambaSchedule",
        config="linearize_mmmamba.schedule:MmMambaScheduleConfig", source=PAPER,
        summary="align new parameters, align the mixer, distil; corrected, as printed, or as released"))  # fmt: skip
    register(FormatSpec(
        name="mmmamba", build="linearize_mmmamba.format:MmMambaFormat", source=CODE,
        model_types=frozenset({"mmMamba_chat"}),
        summary="checkpoints that hustvl/mmMamba published, linear and hybrid"))  # fmt: skip
