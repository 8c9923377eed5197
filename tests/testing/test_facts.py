"""A site and its weights have to speak of one attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from linearize.proof.facts import disagreements
from linearize.protocols import SiteNorm
from linearize.testing import MixerConformance
from linearize.testing.mixer_inputs import attention_weights

NORM = SiteNorm(kind="rms", over="head")
SITE = replace(MixerConformance.site, qk_norm=NORM)
WEIGHTS = replace(attention_weights(SITE, biases=False, norms=True), norm_eps=NORM.eps)


def test_a_site_and_weights_of_one_attention_agree() -> None:
    assert disagreements(WEIGHTS, SITE) == []
    biased = replace(SITE, qk_norm=replace(NORM, has_bias=True))
    assert disagreements(replace(WEIGHTS, q_norm_bias=torch.zeros(SITE.key_dim)), biased) == []


@pytest.mark.parametrize(
    ("of_weights", "of_site", "named"),
    [
        ({"q_norm_bias": torch.zeros(6)}, {}, "no qk_norm.has_bias"),
        ({"k_norm_bias": torch.zeros(6)}, {}, "no qk_norm.has_bias"),
        ({"norm": "layer"}, {}, "qk_norm = "),
        ({"norm_eps": 1e-3}, {}, "qk_norm = "),
        ({}, {"qk_norm": None}, "qk_norm = None"),
        ({}, {"qkv_bias": True}, "qkv_bias = True"),
        ({"window": 8}, {}, "window = None"),
        ({"softcap": 5.0}, {}, "softcap = None"),
        ({"scale": 1.0}, {}, "scale = 0.40"),
        ({"rope_theta": None}, {}, "has_rope = True"),
        ({}, {"rope_style": "interleaved"}, "rope_style = 'interleaved'"),
    ],
)
def test_what_they_say_differently_is_named(of_weights: dict[str, Any], of_site: dict[str, Any], named: str) -> None:
    [said] = disagreements(replace(WEIGHTS, **of_weights), replace(SITE, **of_site))
    assert said.startswith(named)


def test_norms_that_differ_are_told_by_kind_shape_and_eps() -> None:
    [said] = disagreements(replace(WEIGHTS, norm="layer", norm_eps=1e-3), SITE)
    assert said == (
        f"qk_norm = rms over [{SITE.key_dim}] with eps 1e-06, but its weights say layer over [{SITE.key_dim}] with eps "
        "0.001"
    )
