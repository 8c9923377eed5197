"""The three seeders pass the kit."""

from __future__ import annotations

from typing import Any

from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols import AttentionSite
from linearize.testing import SeederConformance


class TestMimic(SeederConformance):
    name = "mimic"


class TestMimicIntoHeadsOfTheirOwn(SeederConformance):
    """Each query head gets the key and value head that it shared."""

    name = "mimic"

    def mixer(self, site: AttentionSite) -> Any:
        spec = Plugins.discover().registry.get(MixerSpec, "mamba2")
        options = {"key_value_heads": "per_query", "qkv_bias": True, "qk_norm": True}
        return spec.builder()(spec.config_class().model_validate(options), site)


class TestCopyQkv(SeederConformance):
    name = "copy_qkv"


class TestScratch(SeederConformance):
    name = "scratch"
