"""The three seeders pass the kit."""

from __future__ import annotations

from linearize.testing import SeederConformance


class TestMimic(SeederConformance):
    name = "mimic"


class TestCopyQkv(SeederConformance):
    name = "copy_qkv"


class TestScratch(SeederConformance):
    name = "scratch"
