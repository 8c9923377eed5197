"""A memory of slots as a linear mixer: attention reads a fixed number of slots in place of all tokens."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the mixer "gsa"."""
    register(MixerSpec(
        name="gsa", build="linearize_slots.mixer:GatedSlotAttention", config="linearize_slots.config:GsaConfig",
        source="https://arxiv.org/abs/2409.07146",
        summary="gated slot attention: a softmax over slots that fade and are written to"))  # fmt: skip
