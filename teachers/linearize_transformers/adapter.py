"""The teacher adapter of the transformers library: what linearize asks of a teacher, for any decoder-only model."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig

from linearize.errors import CheckpointError, did_you_mean_path
from linearize.files import hub
from linearize.protocols import AttentionSite, AttentionWeights, Batch
from linearize.protocols.conversation import Conversation
from linearize_transformers.batching import Batcher
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.facts import attention_weights, with_facts
from linearize_transformers.loading import READ_STRICTLY, refuse_other_tensors, refuse_quantised
from linearize_transformers.lora import merge_adapter
from linearize_transformers.models import PROCESSOR_OPTIONS, auto_class, empty_model, has_processor, refuse_attention
from linearize_transformers.packed import pack, packing_obstacle
from linearize_transformers.prefix import PREFIX_MODELS, PrefixBatcher
from linearize_transformers.prompt import Template
from linearize_transformers.sites import FoundSite, find_sites
from linearize_transformers.support import OWN_MASK, PUBLISHED_PROMPTS, caveats

VISION_PACKAGES = ("torchvision", "num2words")
"""What linearize[vision] brings; transformers' message names any other package that it lacks."""


class TransformersAdapter:
    """One checkpoint of the transformers library as a teacher. Nothing is read before it is asked for."""

    def __init__(self, config: TransformersTeacherConfig) -> None:
        self.options = config

    @functools.cached_property
    def config(self) -> Any:
        """The checkpoint's configuration; reads config.json alone.

        Raises:
            CheckpointError: there is no such folder or hub id, its configuration cannot be read, or it is of a
                model that cannot be a teacher.
        """
        config = self._read("configuration", AutoConfig.from_pretrained)
        auto_class(config)
        refuse_quantised(config, self.options.checkpoint)
        return config

    @functools.cached_property
    def _empty_model(self) -> Any:
        """Every module and no weight."""
        return empty_model(self.config)

    @functools.cached_property
    def _found(self) -> dict[int, FoundSite]:
        own_mask = self.config.model_type in OWN_MASK
        refuse_attention(self._empty_model, self.options.attention, own_mask=own_mask)
        model, config = self._empty_model, copy.deepcopy(self.config.get_text_config(decoder=True))
        # The empty model is built as transformers chooses: what the option names need not be installed here.
        if self.options.attention != "auto":
            config._attn_implementation = self.options.attention
        return {
            found.site.index: with_facts(model.get_submodule(found.site.path), found, config, own_mask=own_mask)
            for found in find_sites(model)
        }

    @property
    def reads_images(self) -> bool:
        """Whether the model has parts beside its text model; from config.json alone."""
        return bool(self.config.sub_configs)

    @property
    def takes_images(self) -> bool:
        """Whether the checkpoint's processor is more than a tokenizer."""
        return self._tokenizer is not self._processor

    def sites(self) -> list[AttentionSite]:
        """Every softmax self-attention of the decoder, in execution order; from config.json alone.

        Raises:
            CheckpointError: the model cannot be converted; says which part of it and why. Or its attention cannot be
                computed as the recipe says.
        """
        return [found.site for found in self._found.values()]

    def caveats(self) -> list[str]:
        """What a linear site cannot do that this model's attention does."""
        return caveats(self.config, self._found.values())

    def random_model(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        """A model of the checkpoint's sizes with random weights, in eval mode; from config.json alone."""
        options = {} if self.options.attention == "auto" else {"attn_implementation": self.options.attention}
        with torch.device(device):
            return auto_class(self.config).from_config(copy.deepcopy(self.config), dtype=dtype, **options).eval()

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        """The model in eval mode.

        Raises:
            CheckpointError: its weights cannot be read, or are not all that its configuration describes.
        """
        options: dict[str, Any] = {"dtype": dtype, **READ_STRICTLY}
        if self.options.attention != "auto":
            options["attn_implementation"] = self.options.attention
        model, info = self._read("model", auto_class(self.config).from_pretrained, **options)
        refuse_other_tensors(model, info, self.options.checkpoint)
        for adapter in self.options.adapters:
            with hub.asked_once(self._location):
                merge_adapter(model, adapter, checkpoint=self._location, revision=self.options.revision)
        generation = model.generation_config
        if generation.pad_token_id is None:
            generation.pad_token_id = self._tokenizer.pad_token_id
        if generation.eos_token_id is None:
            generation.eos_token_id = self._tokenizer.eos_token_id
        return model.to(device).eval()

    def processor(self) -> Any:
        """The checkpoint's processor, or the tokenizer of a text model."""
        return self._processor

    def weights(self, model: Any, site: AttentionSite) -> AttentionWeights:
        """The projections of a site that holds its attention, or a replacement with the same attribute names."""
        text_config = model.config.get_text_config(decoder=True)
        return attention_weights(model.get_submodule(site.path), self._found[site.index], text_config)

    def batch(self, conversations: Sequence[Conversation], *, for_generation: bool = False) -> Batch:
        """Whole conversations right-padded, or for generation left-padded prompts up to the last question."""
        return self._batcher.batch(conversations, for_generation=for_generation)

    def num_tokens(self, conversation: Conversation) -> int:
        """How many tokens ``batch`` makes of a conversation; images are counted by their sizes."""
        return self._batcher.num_tokens(conversation)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of whole documents, with what the tokenizer puts in front and the token that ends a text."""
        return self._batcher.typed.documents(texts)

    def text_batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of tokens, right-padded; the loss covers all of them."""
        return self._batcher.text_batch(rows)

    def packing_obstacle(self) -> str:
        """Why samples cannot share a row; "" where they can."""
        return packing_obstacle(self.config, takes_images=self.reads_images)

    def pack(self, batches: Sequence[Batch], width: int) -> Batch:
        """Batches of one sample each as one row; positions with axes for images are the model's own."""
        return pack(self._empty_model, batches, width, pad_token_id=self._tokenizer.pad_token_id)

    def decode(self, ids_BT: Tensor) -> list[str]:
        """The text of generated ids, special tokens stripped."""
        texts: list[str] = self._tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @functools.cached_property
    def _processor(self) -> Any:
        what, auto = ("processor", AutoProcessor) if has_processor(self.config) else ("tokenizer", AutoTokenizer)
        options = PROCESSOR_OPTIONS.get(self.config.model_type, {}) | self.options.processor
        processor: Any = self._read(what, auto.from_pretrained, **options)
        if self.options.chat_template:
            processor.chat_template = self.options.chat_template
        tokenizer = getattr(processor, "tokenizer", processor)
        if processor.chat_template is None:
            processor.chat_template = tokenizer.chat_template or PUBLISHED_PROMPTS.get(self.config.model_type)
        if processor.chat_template is None:
            raise CheckpointError(
                f"{self.options.checkpoint} has no chat template, so conversations cannot be written as it expects "
                "them; set teacher.chat_template to Jinja text or a file that holds it"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return processor

    @property
    def _tokenizer(self) -> Any:
        return getattr(self._processor, "tokenizer", self._processor)

    @functools.cached_property
    def _batcher(self) -> Batcher:
        ends = [self._tokenizer.convert_ids_to_tokens(token) for token in self._end_ids()]
        batcher = PrefixBatcher if self.config.model_type in PREFIX_MODELS else Batcher
        return batcher(
            self._processor,
            Template(self._processor, takes_images=self.takes_images, end_marks=[end for end in ends if end]),
            input_names=inspect.signature(self._empty_model.forward).parameters,
            image_token_id=self._image_token_id() if self.takes_images else None,
        )

    def _end_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's and those of generation_config.json."""
        ends = {self._tokenizer.eos_token_id}
        try:
            with hub.asked_once(self._location):
                listed = GenerationConfig.from_pretrained(self._location, revision=self.options.revision).eos_token_id
        except (OSError, ValueError):  # most checkpoints have one, none needs one
            listed = None
        ends |= set(listed) if isinstance(listed, list) else {listed}
        return sorted(end for end in ends if end is not None)

    def _image_token_id(self) -> int | None:
        for owner, name in (
            (self.config, "image_token_id"),
            (self.config, "image_token_index"),
            (self._processor, "image_token_id"),
        ):
            token = getattr(owner, name, None)
            if token is not None:
                return int(token)
        return None

    @functools.cached_property
    def _location(self) -> str:
        """The folder, or the hub id."""
        checkpoint = self.options.checkpoint
        folder = Path(checkpoint).expanduser()
        if folder.is_dir():
            return str(folder)
        if folder.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") > 1:
            raise CheckpointError(
                f"there is no folder '{checkpoint}'.{did_you_mean_path(checkpoint)} Give a folder "
                "with a config.json, or a hub id such as 'HuggingFaceTB/SmolVLM-256M-Instruct'",
                option="checkpoint",
                found=checkpoint,
            )
        return checkpoint

    def _read(self, what: str, read: Callable[..., Any], **options: Any) -> Any:
        location = self._location
        with hub.asked_once(location) as obstacle:
            try:
                return read(location, revision=self.options.revision, **options)
            except Exception as error:
                brought = any(package in str(error) for package in VISION_PACKAGES)
                hint = " pip install 'linearize[vision]' brings what processors need." if brought else ""
                raise CheckpointError(
                    f"the {what} of '{self.options.checkpoint}' cannot be read: {hub.failure(error, obstacle)}{hint}"
                    f"{did_you_mean_path(location)}"
                ) from error
