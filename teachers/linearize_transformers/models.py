"""Which class loads which configuration, by transformers' own tables; and a configuration's model without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from linearize.errors import CheckpointError

# Also named there: students, once their classes are made, which CONFIG_MAPPING_NAMES does not know.
# A type that both tables know is loaded with its images.
TABLES: tuple[tuple[Any, Any], ...] = (
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, AutoModelForImageTextToText),
    (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
)

PROCESSOR_OPTIONS: dict[str, dict[str, Any]] = {"mllama": {"backend": "pil"}}
"""``config.model_type`` -> options of its processor that a recipe need not say.

Mllama's image processor for torchvision fails, or gives images the shapes of others, when a conversation of the batch
has no image (transformers 5.23); the one for Pillow does not.
"""

SUPPORT_FLAGS = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
"""``teacher.attention`` -> the class attribute by which transformers knows which models can; all can "eager"."""


def model_classes() -> dict[str, str]:
    """``config.model_type`` -> "transformers:ModelClass" of every model that the adapter would load."""
    classes: dict[str, str] = {}
    for names, _ in TABLES:
        for model_type, name in names.items():
            if model_type in CONFIG_MAPPING_NAMES:
                classes.setdefault(model_type, f"transformers:{name if isinstance(name, str) else name[0]}")
    return classes


def auto_class(config: Any) -> Any:
    """The Auto class that loads a model of this configuration.

    Raises:
        CheckpointError: transformers has neither a vision-language model nor a causal LLM for it, or it has an encoder
            whose keys and values the decoder reads.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"'{config.model_type}' is an encoder-decoder model: its decoder reads an encoder's keys and values, which "
            "a recurrence over its own tokens cannot stand in for; take a decoder-only model"
        )
    for names, auto in TABLES:
        if config.model_type in names and config.model_type in CONFIG_MAPPING_NAMES:
            return auto
    raise CheckpointError(
        f"transformers has no vision-language model and no causal LLM of type '{config.model_type}'; take a checkpoint "
        "of one of those, or write a teacher plug-in for it"
    )


def has_processor(config: Any) -> bool:
    """Whether a checkpoint of this configuration has a processor and not a tokenizer alone.

    Some causal LLMs by class take images too, such as Phi-4 multimodal.
    """
    model_type = config.model_type
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or model_type in PROCESSOR_MAPPING_NAMES


def empty_model(config: Any) -> nn.Module:
    """The model of a configuration on the meta device: every module, no weight.

    Raises:
        CheckpointError: its class cannot be built here, as when it needs a package that is not installed; or it is the
            class of another model type, by which a saved student would not be found again.
    """
    auto = auto_class(config)
    try:
        model = _without_weights(auto, config)
    except Exception as error:
        raise CheckpointError(
            f"a '{config.model_type}' model cannot be built from its configuration: {type(error).__name__}: {error}"
        ) from error
    own: Any = getattr(type(model), "config_class", None)
    if own is not None and own.model_type != config.model_type:
        raise CheckpointError(
            f"transformers loads '{config.model_type}' as a {type(model).__name__}, which is the class of "
            f"'{own.model_type}', so that a student of it could not be loaded again; take a checkpoint of that type, "
            f"or a copy of this one whose config.json says it, if its other keys are those of '{own.model_type}'"
        )
    return model


def _without_weights(auto: Any, config: Any) -> nn.Module:
    try:
        with torch.device("meta"), _CountsOnTheCpu(), no_init_weights():
            return auto.from_config(config)
    except Exception:  # a model that computes with what it counts and with weights: all on one device, then
        with torch.device("meta"), no_init_weights():
            return auto.from_config(config)


class _CountsOnTheCpu(TorchFunctionMode):
    """``torch.arange``, from which rotary frequencies are made, stays on the CPU.

    On the meta device torch 2.13 computes them in Python, with sympy, whose import takes half as long as torch's.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.arange:
            options = {"device": "cpu", **options}
        return func(*args, **options)


def refuse_attention(model: nn.Module, attention: str, *, own_mask: bool) -> None:
    """Tells before a weight is loaded what transformers would tell while it loads them, or not at all.

    Args:
        own_mask: whether some tokens see others that come after them.

    Raises:
        CheckpointError: a part of the model cannot compute its attention so.
    """
    if own_mask and attention == "flash_attention_2":  # transformers 5.24 offers it no longer; earlier releases do
        raise CheckpointError(
            f"teacher.attention is '{attention}', which drops the mask by which {type(model).__name__} reads some "
            "tokens in both directions; set teacher.attention to 'auto'"
        )
    flag = SUPPORT_FLAGS.get(attention)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)] if flag else []
    unable = dict.fromkeys(type(part).__name__ for part in parts if not getattr(part, str(flag), True))
    if unable:
        raise CheckpointError(
            f"teacher.attention is '{attention}', which transformers does not offer for {', '.join(unable)}, as where "
            "scores are capped; set teacher.attention to 'eager', or to 'auto' for the fastest that the model can do"
        )
