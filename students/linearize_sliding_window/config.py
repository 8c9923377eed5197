"""Options of the mixers with a sliding window; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from linearize.plugin.components import MixerComponent, ResolvedComponent, named
from linearize.plugin.config import Config


class WindowOptions(Config):
    """What a query sees."""

    window: int = Field(
        default=64,
        ge=2,
        description="Tokens that a query sees, its own included; fewer where the teacher's own window is smaller.",
    )
    sinks: int = Field(
        default=0,
        ge=0,
        description="First tokens of a sequence that every query sees beside its window (arXiv 2309.17453).",
    )


class SlidingWindowConfig(WindowOptions):
    """Options of one sliding-window attention."""

    gain: bool = Field(
        default=True,
        description="A learnt factor per head on the output, 1 at the start: the part that is left may weigh less.",
    )


class SwaLinearConfig(WindowOptions):
    """Options of one sliding window with a linear mixer beside it."""

    linear: MixerComponent = Field(
        default=named("gated_delta_net"),
        description="The linear mixer of the other branch: any registered one, with its options.",
    )
    combine: Literal["sum", "average", "joint"] = Field(
        default="sum",
        description="sum: both branches times learnt gates; average: half of each, nothing to learn; joint: one sum of "
        "weights divides the window and, for what lies before it, a linear mixer whose output is an average too.",
    )
    gates: Literal["head", "site"] = Field(
        default="head", description="Gates, of a sum one for each branch: for each head, or for the whole site."
    )
    linear_start: float = Field(
        default=0.0,
        description="First gate of the linear branch in a sum with seeder mimic; 0: the student starts as the window "
        "alone.",
    )
    window_start: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="First weight of the best key inside the window with combine = joint; those of the linear branch "
        "are its features' products as they are.",
    )
    window_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of training conversations that do without the window at a site, so that the linear branch "
        "learns to stand alone (arXiv 2510.05901); never while answering.",
    )

    @field_validator("linear")
    @classmethod
    def _one_window_is_enough(cls, linear: ResolvedComponent) -> ResolvedComponent:
        if isinstance(linear.config, SwaLinearConfig):
            raise ValueError(
                "this mixer cannot hold another of its kind, whose window would stand beside the one that is here; "
                "name a linear mixer, such as gated_delta_net, and set this mixer's own `window`"
            )
        return linear

    @model_validator(mode="after")
    def _gates_belong_to_a_sum(self) -> SwaLinearConfig:
        if self.combine == "average" and (self.linear_start != 0.0 or self.gates != "head"):
            raise ValueError(
                f"combine = 'average' with gates = '{self.gates}' and linear_start = {self.linear_start}: an average "
                "has no gates; leave both out or set combine = 'sum'"
            )
        return self

    @model_validator(mode="after")
    def _joint_branches_share_no_token(self) -> SwaLinearConfig:
        if self.combine == "joint":
            others: dict[str, float] = {"linear_start": 0.0, "sinks": 0, "window_dropout": 0.0}
            why = "the linear branch has no gate, and sees each token only once the window does not"
        else:
            others, why = {"window_start": 0.5}, "only combine = 'joint' has such a weight"
        wrong = [f"{name} = {getattr(self, name)}" for name, free in others.items() if getattr(self, name) != free]
        if wrong:
            raise ValueError(f"combine = '{self.combine}' with {' and '.join(wrong)}: {why}; leave that out")
        return self
