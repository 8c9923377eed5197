"""The three stages of mmMamba as plain stage tables (section 3.3 and "Implementation details" of the paper).

Paper and released code differ in several places; ``variant`` says which to follow. docs/mmmamba.md has the table of
differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from linearize.plugin.config import Config

Table = dict[str, Any]

PAPER_STEPS = 20_000

# The code gives stage 2 the schedule 5000/40000/5000 but stops it at max_steps 20000 or after one epoch, whichever
# comes first. One epoch of its 1,701,560 samples at batch size 128 is 13,293 steps, so the epoch ends it: on the
# plateau, with no decay at all.
CODE_STAGE_2_STEPS = 1_701_560 // 128
CODE_STAGE_2_PLAN = 50_000


class MmMambaScheduleConfig(Config):
    """The ``[schedule]`` table of a recipe with ``type = "mmmamba"``."""

    variant: Literal["corrected", "paper", "code"] = Field(
        default="corrected",
        description="paper: as printed; code: as in hustvl/mmMamba; corrected: what is right where those differ",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """All in which the three variants differ."""

    layer_loss: Table
    logit_loss: Table
    clip: float
    no_decay: str
    align_mixer_steps: int = PAPER_STEPS
    align_mixer_plan: int | None = None
    distill_freeze: tuple[str, ...] = ()


VARIANTS: dict[str, Variant] = {
    "corrected": Variant(
        layer_loss={"type": "layer_mse", "space": "heads", "scale": 1000.0, "reduction": "mean", "tokens": "valid"},
        logit_loss={"type": "logit_kl", "tokens": "valid", "normalize": "token"},
        clip=5.0,
        no_decay="vectors",
    ),
    "paper": Variant(
        layer_loss={"type": "layer_mse", "space": "output", "scale": 1.0, "reduction": "sum", "tokens": "valid"},
        logit_loss={"type": "logit_kl", "tokens": "valid", "normalize": "token"},
        clip=5.0,
        # The paper does not say what weight decay spares; this is what its code spares: names with "bias" in them,
        # which its decay constants, dt_bias and A_log_bias, have too.
        no_decay="biases",
    ),
    "code": Variant(
        layer_loss={"type": "layer_mse", "space": "heads", "scale": 1000.0, "reduction": "mean", "tokens": "all"},
        logit_loss={"type": "logit_kl", "tokens": "all", "normalize": "batch"},
        clip=2.0,
        no_decay="biases",
        align_mixer_steps=CODE_STAGE_2_STEPS,
        align_mixer_plan=CODE_STAGE_2_PLAN,
        distill_freeze=("decay",),
    ),
}


class MmMambaSchedule:
    """Stage 1 ``align-new``, stage 2 ``align-mixer``, stage 3 ``distill``.

    Stages 1 and 2 convert every site, whatever the layout keeps; hybrids branch off in stage 3, where kept sites run
    their attention again. Steps and batch sizes are the paper's, for all devices together; a recipe overlays them.
    """

    def __init__(self, config: MmMambaScheduleConfig) -> None:
        self.variant = VARIANTS[config.variant]

    def stages(self) -> list[Table]:
        """The stage tables, ready to be overlaid by name and validated."""
        variant = self.variant
        align_new = self._stage("align-new", variant.layer_loss, ["new"], lr=1e-3, batch_size=128)
        align_mixer = self._stage("align-mixer", variant.layer_loss, ["new", "qkv"], lr=5e-4, batch_size=128)
        align_mixer["steps"] = variant.align_mixer_steps
        if variant.align_mixer_plan is not None:
            align_mixer["lr_schedule"]["planned_steps"] = variant.align_mixer_plan
        distill = self._stage(
            "distill",
            {**variant.logit_loss, "direction": "forward", "temperature": 1.0},
            ["new", "qkv"],
            lr=5e-5,
            batch_size=64,
        )
        return [
            {**align_new, "sites": "all"},
            {**align_mixer, "sites": "all"},
            {**distill, "sites": "layout", "freeze": list(variant.distill_freeze)},
        ]

    def _stage(self, name: str, objective: Table, train: list[str], *, lr: float, batch_size: int) -> Table:
        return {
            "name": name,
            "objective": dict(objective),
            "train": train,
            "steps": PAPER_STEPS,
            "batch_size": batch_size,
            "lr": lr,
            "lr_schedule": {"warmup": 0.1, "decay": 0.1, "final": 0.0},
            "optimizer": {
                "type": "adamw",
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": 0.05,
                "no_decay": self.variant.no_decay,
            },
            "clip": self.variant.clip,
        }
