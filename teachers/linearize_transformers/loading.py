"""A teacher is what its files hold: no tensor is drawn at random, cut or left out silently, and none is quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from linearize.errors import CheckpointError
from linearize.files.strict_loading import refuse_wrong_tensors

READ_STRICTLY = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options of ``from_pretrained`` by which it reports what ``refuse_other_tensors`` refuses."""

ADVICE = (
    "transformers would draw the missing ones at random; fetch the checkpoint again, or put right what its config.json "
    "says (tie_word_embeddings, sizes, biases)"
)


def refuse_quantised(config: Any, checkpoint: str) -> None:
    """Tells of quantised weights while nothing but the configuration was read.

    Raises:
        CheckpointError: the configuration, or that of a part, says that the weights are quantised.
    """
    for part in (config, *_parts(config)):
        quantisation = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if quantisation is not None:
            said = quantisation if isinstance(quantisation, Mapping) else vars(quantisation)
            method = said.get("quant_method", "unknown")
            raise CheckpointError(
                f"'{checkpoint}' is quantised (its config.json says quant_method '{method}'), but a student is seeded "
                "from plain weights and trained beside them. Name the checkpoint that it was made from, or write a "
                "plain copy and name that: model = AutoModel....from_pretrained(...); model.dequantize(); "
                "model.save_pretrained(...)"
            )


def refuse_other_tensors(model: nn.Module, info: Mapping[str, Any], checkpoint: str) -> None:
    """Fails unless the files have every tensor of ``model``, in its shape, and none that its configuration leaves out.

    What belongs to no module of the model is not needed: heads of another use, layers that predict further tokens.

    Raises:
        CheckpointError: names the tensors.
    """
    left_out = [name for name in info.get("unexpected_keys") or () if _is_left_out(model, str(name))]
    refuse_wrong_tensors(f"the teacher '{checkpoint}'", {**info, "unexpected_keys": left_out}, ADVICE)


def _parts(config: Any) -> Iterator[Any]:
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield part
            yield from _parts(part)


def _is_left_out(model: nn.Module, name: str) -> bool:
    """Whether a module has a place for the tensor and was built without it, such as a bias."""
    path, _, leaf = name.rpartition(".")
    prefix = str(getattr(model, "base_model_prefix", ""))
    modules = dict(model.named_modules())
    module = modules.get(path) or modules.get(f"{prefix}.{path}")
    return module is not None and leaf in module._parameters
