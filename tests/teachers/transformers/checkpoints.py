"""Tiny checkpoints of every family: random weights, a tokenizer made here, and the family's real processor class."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.models import auto_class
from linearize_transformers.support import BOS, EOS, PAD, TURN_END, VOCABULARY, Family
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

SENTENCES = (
    "the red circle is left of the blue square",
    "how many green triangles are there",
    "answer the question using a single word or phrase",
    "user assistant",
)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{{% for message in messages %}}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


@functools.cache
def make_tokenizer(tokens: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE whose first ids are SPECIAL and then ``tokens``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL, *tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *tokens],
    )
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<|im_end|>"]) == [PAD, BOS, EOS, TURN_END]
    assert len(tokenizer) <= VOCABULARY
    return tokenizer


def make_model(family: Family) -> Any:
    """The family's model with weights large enough that its answers do not repeat one token."""
    config = CONFIG_MAPPING[family.model_type](**family.config)
    torch.manual_seed(0)
    model = auto_class(config).from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.3 * parameter.shape[-1] ** -0.5, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.6 - 0.3)
            else:
                parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def make_checkpoint(family: Family, folder: Path) -> Path:
    """A complete checkpoint of the family."""
    make_model(family).save_pretrained(folder)
    template = TEMPLATE.format(image=family.image)
    if family.image:
        from processors import make_processor

        make_processor(family, template).save_pretrained(folder)
    else:
        tokenizer = make_tokenizer(family.tokens)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return folder


class LoadsOnce(TransformersAdapter):
    """Reads its files once and then hands out copies, which is quicker."""

    @functools.cache  # noqa: B019  an adapter of the tests lives as long as they do
    def _loaded(self, dtype: torch.dtype) -> Any:
        return super().load(dtype=dtype, device="cpu")

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        return copy.deepcopy(self._loaded(dtype))
