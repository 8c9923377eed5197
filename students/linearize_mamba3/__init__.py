"""Mamba-3 as a linear mixer: trapezoidal writes, and a state that turns as fast as the input says."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the mixer "mamba3"."""
    register(MixerSpec(
        name="mamba3", build="linearize_mamba3.mixer:Mamba3Mixer", config="linearize_mamba3.config:Mamba3Config",
        source="https://arxiv.org/abs/2603.15569",
        summary="Mamba-3 (single input, single output): trapezoidal writes and rotations that depend on the token",
    ))  # fmt: skip
