"""The embedded HoVLE against the conformance kit."""

from __future__ import annotations

from linearize_hovle.adapter import HovleAdapter
from linearize_hovle.config import HovleTeacherConfig

from linearize.testing import TeacherConformance


class TestEmbeddedHovle(TeacherConformance):
    mixer = "mamba2"
    answers = ("red", "blue circle")

    def make_adapter(self) -> HovleAdapter:
        return HovleAdapter(HovleTeacherConfig())
