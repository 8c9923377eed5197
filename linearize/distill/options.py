"""Options of the built-in objectives; kept apart from their code so that checking a recipe imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from linearize.plugin.config import Config


class LayerMseConfig(Config):
    """Options of ``layer_mse``; the defaults are the released mmMamba code's, the paper's loss is after W_O, summed."""

    space: Literal["heads", "output"] = Field(
        default="heads", description="heads: per head before the output projection; output: after it"
    )
    scale: float = Field(
        default=1000.0, gt=0, description="factor on the loss; matters for clipping only (mse_factor in the code)"
    )
    reduction: Literal["mean", "sum"] = Field(default="mean", description="over the sites that take part")
    normalize: Literal["none", "variance"] = Field(
        default="none",
        description="variance: each site's error is divided by its target's mean square, so that all weigh the same",
    )
    tokens: Literal["valid", "all"] = Field(
        default="valid", description="all: padding counts too, as in the released code"
    )


class LogitKlConfig(Config):
    """Options of ``logit_kl``."""

    direction: Literal["forward", "reverse"] = Field(
        default="forward", description="forward: KL(teacher || student), reverse: KL(student || teacher)"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="divides both models' logits; the loss is multiplied by its square"
    )
    tokens: Literal["valid", "answers", "text", "all"] = Field(
        default="valid",
        description="predicted tokens that count: all but padding, answers only, text without images, or padding too",
    )
    normalize: Literal["token", "batch"] = Field(
        default="token",
        description="token: mean over the tokens that count; batch: their sum divided by the number of conversations, "
        "as torch's `batchmean` on [B, T, vocabulary] does in the released code",
    )
    hidden_weight: float = Field(
        default=0.0,
        ge=0,
        description="what one valid token's error of hidden states counts beside one predicted token's KL; the error "
        "is the squared distance of the student's from the teacher's over the latter's squared length, mean over the "
        "layers (after MOHAWK, arXiv 2408.10189). 0: the KL alone",
    )
    chunk_tokens: int = Field(default=1024, gt=0, description="tokens whose logits exist at one time")
