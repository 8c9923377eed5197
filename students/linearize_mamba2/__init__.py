"""Mamba-2 as a linear mixer: the recurrence that mmMamba distils attention into."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the mixer "mamba2"."""
    register(MixerSpec(
        name="mamba2", build="linearize_mamba2.mixer:Mamba2Mixer", config="linearize_mamba2.config:Mamba2Config",
        source="https://arxiv.org/abs/2405.21060",
        summary="Mamba-2 with per-head norm and gate, keys and values shared as in the teacher"))  # fmt: skip
