"""Softmax attention over a sliding window as a mixer; no torch is imported here."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Registers the mixers "sliding_window" and "swa_linear"."""
    register(MixerSpec(
        name="sliding_window", build="linearize_sliding_window.mixer:SlidingWindowMixer",
        config="linearize_sliding_window.config:SlidingWindowConfig", source="https://arxiv.org/abs/2004.05150",
        summary="softmax attention over the last tokens, and the first few if asked for"))  # fmt: skip
    register(MixerSpec(
        name="swa_linear", build="linearize_sliding_window.combined:SwaLinearMixer",
        config="linearize_sliding_window.config:SwaLinearConfig", source="https://arxiv.org/abs/2410.10254",
        summary="a sliding window and any linear mixer side by side, added"))  # fmt: skip
