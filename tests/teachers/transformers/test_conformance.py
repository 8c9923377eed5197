"""Every family of the table against the conformance kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.processing import process
from linearize_transformers.support import FAMILIES
from PIL import Image

from linearize.protocols import TeacherAdapter
from linearize.testing import TeacherConformance

pytestmark = pytest.mark.filterwarnings(r"ignore:'\w+'")  # caveats, which begin with a model type
TEXT = [family.model_type for family in FAMILIES if not family.image]
VISION = [family.model_type for family in FAMILIES if family.image]


class FamilyConformance(TeacherConformance):
    @pytest.fixture
    def adapter(self, family_adapter: TransformersAdapter) -> TransformersAdapter:
        return family_adapter

    def test_the_teacher_loads_as_asked_and_the_same_each_time(self, adapter: TeacherAdapter) -> None:
        """By an adapter that reads its files each time."""
        assert isinstance(adapter, TransformersAdapter)
        super().test_the_teacher_loads_as_asked_and_the_same_each_time(TransformersAdapter(adapter.options))

    def load_processor(self, processor: Any, folder: Path) -> Any:
        """Some classes drop their chat template when they are loaded; their tokenizers keep it."""
        again = super().load_processor(processor, folder)
        if again.chat_template is None:
            again.chat_template = again.tokenizer.chat_template
        return again

    def call_processor(self, processor: Any, prompt: str, images: list[Image.Image]) -> Mapping[str, Any]:
        """By the way that the adapter takes, which is not always the class's own."""
        return process(processor, [prompt], [images], input_names=("pixel_values",), padding_side="right")


@pytest.mark.parametrize("family", TEXT, indirect=True)
class TestTextModels(FamilyConformance):
    takes_images = False


@pytest.mark.parametrize("family", VISION, indirect=True)
class TestVisionLanguageModels(FamilyConformance):
    pass
