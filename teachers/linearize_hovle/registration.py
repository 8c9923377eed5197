"""Makes transformers' Auto classes know HoVLE; importing this module is enough."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from linearize_hovle.configuration import HovleConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from linearize_hovle.processing import HovleProcessor
from linearize_hovle.tokenization import HovleTokenizer

AutoConfig.register(HovleConfig.model_type, HovleConfig, exist_ok=True)
AutoModelForImageTextToText.register(HovleConfig, HovleForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(HovleConfig, slow_tokenizer_class=HovleTokenizer, exist_ok=True)
AutoProcessor.register(HovleConfig, HovleProcessor, exist_ok=True)
