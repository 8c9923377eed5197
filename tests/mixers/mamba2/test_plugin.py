"""The Mamba-2 plug-in registers without importing torch."""

from __future__ import annotations

from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec


def test_the_mixer_is_found_by_name() -> None:
    import linearize_mamba2

    plugins = Plugins()
    plugins.add(linearize_mamba2, name="mamba2")
    spec = plugins.registry.get(MixerSpec, "mamba2")
    assert spec.config_class().__name__ == "Mamba2Config"
    assert spec.builder().__name__ == "Mamba2Mixer"
