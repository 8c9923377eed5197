"""The delta rule as a linear mixer: what a key finds is replaced, not added to."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the mixers "delta_net", "gated_delta_net" and "kda"."""
    register(MixerSpec(
        name="delta_net", build="linearize_delta.mixer:DeltaNetMixer", config="linearize_delta.config:DeltaNetConfig",
        source="https://arxiv.org/abs/2406.06484",
        summary="DeltaNet: each token replaces what its key finds, nothing decays"))  # fmt: skip
    register(MixerSpec(
        name="gated_delta_net", build="linearize_delta.mixer:GatedDeltaNetMixer",
        config="linearize_delta.config:GatedDeltaNetConfig", source="https://arxiv.org/abs/2412.06464",
        summary="Gated DeltaNet: the delta rule over a state that decays, one rate per head"))  # fmt: skip
    register(MixerSpec(
        name="kda", build="linearize_delta.mixer:KdaMixer", config="linearize_delta.config:KdaConfig",
        source="https://arxiv.org/abs/2510.26692",
        summary="Kimi Delta Attention: the delta rule over a state that decays, one rate per key channel"))  # fmt: skip
