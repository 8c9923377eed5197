"""Mixers whose state decays by a gate and takes in one outer product a token: S_t = decay_t S_{t-1} + k_t v_tᵀ."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers "simple_gla", "retnet", "lightning", "gla" and "hgrn2"."""
    register(MixerSpec(
        name="simple_gla", build="linearize_gated.simple_gla:SimpleGla",
        config="linearize_gated.config:SimpleGlaConfig", source="https://arxiv.org/abs/2405.05254",
        summary="gated retention: one decay per head that depends on the token"))  # fmt: skip
    register(MixerSpec(
        name="retnet", build="linearize_gated.fixed:Retnet", config="linearize_gated.config:RetnetConfig",
        source="https://arxiv.org/abs/2307.08621", summary="retention: one fixed decay per head"))  # fmt: skip
    register(MixerSpec(
        name="lightning", build="linearize_gated.fixed:Lightning", config="linearize_gated.config:LightningConfig",
        source="https://arxiv.org/abs/2401.04658",
        summary="Lightning attention: a fixed decay per head that weakens from layer to layer"))  # fmt: skip
    register(MixerSpec(
        name="gla", build="linearize_gated.gla:Gla", config="linearize_gated.config:GlaConfig",
        source="https://arxiv.org/abs/2312.06635",
        summary="gated linear attention: a decay per key channel that depends on the token"))  # fmt: skip
    register(MixerSpec(
        name="hgrn2", build="linearize_gated.hgrn2:Hgrn2", config="linearize_gated.config:Hgrn2Config",
        source="https://arxiv.org/abs/2404.07904",
        summary="HGRN2: what a key channel takes in is what it forgets"))  # fmt: skip
