"""Every family of the table against the conformance kit."""

from __future__ import annotations

import pytest
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.support import FAMILIES

from linearize.testing import TeacherConformance

TEXT = [family.model_type for family in FAMILIES if not family.image]
VISION = [family.model_type for family in FAMILIES if family.image]


@pytest.mark.parametrize("family", TEXT, indirect=True)
class TestTextModels(TeacherConformance):
    takes_images = False

    @pytest.fixture
    def adapter(self, family_adapter: TransformersAdapter) -> TransformersAdapter:
        return family_adapter


@pytest.mark.filterwarnings("ignore:.*both directions")
@pytest.mark.parametrize("family", VISION, indirect=True)
class TestVisionLanguageModels(TeacherConformance):
    @pytest.fixture
    def adapter(self, family_adapter: TransformersAdapter) -> TransformersAdapter:
        return family_adapter
