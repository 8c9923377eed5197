"""Options of linear attention with feature maps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from linearize.mixing.options import LinearMixerOptions


class FeatureMapConfig(LinearMixerOptions):
    """Options of one feature map mixer."""

    output_norm: bool = Field(
        default=False,
        description="RMSNorm over each head's output, one weight shared by the heads; the papers have none, as an "
        "average of values has attention's size already.",
    )
    gate: bool = Field(
        default=False,
        description="Multiply the output with SiLU of a projection of the input; the papers do not, and a gate starts "
        "near 0, where an average of values starts near attention.",
    )
    rope: bool = Field(
        default=True,
        description="Turn q and k by the teacher's rotary embedding, where it has one, before the maps; false: nothing "
        "but the convolution knows the order of tokens.",
    )
    map: Literal["hedgehog", "t2r", "elu"] = Field(
        default="hedgehog",
        description="What makes features of q and k: hedgehog: softmax(Wx + b) and softmax(-Wx - b), side by side; "
        "t2r: relu(Wx + b); elu: elu(x) + 1, which has nothing to learn.",
    )
    feature_dim: int = Field(
        default=0, ge=0,
        description="Rows of W for each head; 0: the width of a key head. Hedgehog makes twice as many features.",
    )  # fmt: skip
    normalizer: bool = Field(
        default=True,
        description="Divide by the sum of all weights, so that an output is an average of values; false: it grows with "
        "the length, which output_norm = true takes out.",
    )
    normalizer_eps: float = Field(
        default=1e-6, gt=0, description="Added to that sum, for queries that meet no key; no unit."
    )

    @model_validator(mode="after")
    def _nothing_to_widen(self) -> FeatureMapConfig:
        if self.map == "elu" and self.feature_dim:
            raise ValueError(
                f"feature_dim = {self.feature_dim} with map = 'elu', which has no matrix: its features are as many as "
                "a key head is wide; leave feature_dim out or choose 'hedgehog' or 't2r'"
            )
        return self
