"""Linear attention with feature maps in the place of the exponential, as LoLCATs, Hedgehog and T2R have it."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the mixer "feature_map"."""
    register(MixerSpec(
        name="feature_map", build="linearize_feature_map.mixer:FeatureMapMixer",
        config="linearize_feature_map.config:FeatureMapConfig", source="https://arxiv.org/abs/2410.10254",
        summary="linear attention over learnt features of q and k, normalised as softmax is"))  # fmt: skip
