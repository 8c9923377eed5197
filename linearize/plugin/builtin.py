"""What the core itself registers, through the same hook as every plug-in."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import DataSpec, EvaluatorSpec, KernelSpec, LayoutSpec, ObjectiveSpec, SeederSpec

MMMAMBA_PAPER = "https://arxiv.org/abs/2502.13145"

REFERENCES = {
    "gated": "linearize.ops.gated:gated_recurrence",
    "ssd": "linearize.ops.gated:ssd_recurrence",
    "channel_gated": "linearize.ops.channel_gated:channel_gated_recurrence",
    "delta": "linearize.ops.delta:delta_recurrence",
    "slots": "linearize.ops.slots:slot_attention",
    "conv": "linearize.ops.conv:causal_conv",
}
"""Operation -> the torch code that defines it."""


@hookimpl
def linearize_register(register: Register) -> None:
    """Layouts, seeders, objectives, the data sources of files, an evaluator, and what kernels are measured against."""
    register(LayoutSpec(
        name="all", build="linearize.plan.layouts:AllLinear", source=MMMAMBA_PAPER,
        summary="every site becomes linear"))  # fmt: skip
    register(LayoutSpec(
        name="every", build="linearize.plan.layouts:EveryNth", config="linearize.plan.layouts:EveryNthConfig",
        source=MMMAMBA_PAPER,
        summary="one site of every n keeps its attention, the first or the last of each block"))  # fmt: skip
    register(LayoutSpec(
        name="stacked", build="linearize.plan.layouts:Stacked", config="linearize.plan.layouts:StackedConfig",
        source=MMMAMBA_PAPER,
        summary="the first or the last n sites keep their attention"))  # fmt: skip
    register(LayoutSpec(
        name="keep", build="linearize.plan.layouts:Keep", config="linearize.plan.layouts:KeepConfig",
        source=MMMAMBA_PAPER,
        summary="the listed sites keep their attention"))  # fmt: skip
    register(SeederSpec(
        name="mimic", build="linearize.mixing.attention_seeder:mimic", source=MMMAMBA_PAPER,
        summary="q, k, v from the teacher, the rest set so that the mixer starts near attention"))  # fmt: skip
    register(SeederSpec(
        name="copy_qkv", build="linearize.mixing.attention_seeder:copy_qkv", source=MMMAMBA_PAPER,
        summary="q, k, v from the teacher, the rest fresh"))  # fmt: skip
    register(SeederSpec(
        name="scratch", build="linearize.mixing.attention_seeder:scratch", source=MMMAMBA_PAPER,
        summary="everything fresh; only the output projection is the teacher's"))  # fmt: skip
    register(ObjectiveSpec(
        name="layer_mse", build="linearize.distill.objectives:LayerMse",
        config="linearize.distill.options:LayerMseConfig",
        source=MMMAMBA_PAPER,
        summary="each mixer imitates its teacher attention on the teacher's own inputs"))  # fmt: skip
    register(ObjectiveSpec(
        name="logit_kl", build="linearize.distill.objectives:LogitKl",
        config="linearize.distill.options:LogitKlConfig",
        source=MMMAMBA_PAPER, summary="the whole student imitates the teacher's next-token distribution"))  # fmt: skip
    register(DataSpec(
        name="llava_json", build="linearize.data.llava_json:LlavaJsonSource",
        config="linearize.data.llava_json:LlavaJsonConfig", source="https://arxiv.org/abs/2304.08485",
        summary="JSON or JSONL records with image and conversations, and a folder of images"))  # fmt: skip
    register(DataSpec(
        name="hub_dataset", build="linearize.data.hub_dataset:HubDatasetSource",
        config="linearize.data.hub_dataset:HubDatasetConfig", source="https://huggingface.co/docs/datasets",
        summary="a dataset of the Hugging Face hub or a folder of one, with images and conversations"))  # fmt: skip
    register(DataSpec(
        name="mix", build="linearize.data.mix:MixSource", config="linearize.data.mix:MixConfig",
        source="https://arxiv.org/abs/1910.10683",
        summary="samples of several sources, each with its share"))  # fmt: skip
    register(DataSpec(
        name="text", build="linearize.data.text.source:TextSource",
        config="linearize.data.text.config:TextConfig", source="https://arxiv.org/abs/2005.14165",
        summary="running text from files or a dataset, cut into rows of the teacher's tokens"))  # fmt: skip
    register(EvaluatorSpec(
        name="branches", build="linearize.evaluate.branches.evaluator:Branches",
        config="linearize.evaluate.branches.config:BranchesConfig", source="https://arxiv.org/abs/2510.05901",
        summary="what each branch of a student's mixers does, and what is lost without it"))  # fmt: skip
    for operation, target in REFERENCES.items():
        register(KernelSpec(
            name=f"torch_{operation}", operation=operation, backend="torch", build=target, distribution="torch",
            preference=0, source="https://pytorch.org",
            summary=f"'{operation}' in plain torch: its definition"))  # fmt: skip
