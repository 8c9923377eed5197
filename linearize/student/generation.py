"""What ``generate()`` does otherwise where sites are linear: rows that have ended, caches of fixed size, long prompts.

Letters: B batch, S tokens so far.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers.generation import GenerationMixin, StoppingCriteriaList
from transformers.generation import utils as generation_utils
from transformers.masking_utils import create_masks_for_generate

from linearize.student.ahead import ACCELERATORS, a_step_ahead
from linearize.student.entrance import check_history
from linearize.student.state import passed_cache
from linearize.student.static_state import (
    StaticStateLayer,
    is_all_linear,
    make_states_static,
    refuse_mixed_attentions,
)

RAW_IMAGES = frozenset(getattr(generation_utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ("pixel_values",)))
"""What a model takes with the first tokens of a prompt alone."""
GOES_ON_IN_PIECES = "mm_encoder_outputs" in RAW_IMAGES
"""Whether this release of transformers reads what is left of a prompt in pieces; others begin again at its first."""

LONGEST_PIECE = 32_768
"""Tokens of each row that a model without attention reads at a time where nobody says otherwise.

What it needs to read a piece of a prompt grows with the piece; these are enough to keep a GPU busy."""

_watching: ContextVar[RowsEnded | None] = ContextVar("rows_ended", default=None)
"""The criteria of the ``generate()`` that runs now."""


class RowsEnded(StoppingCriteriaList):
    """The stopping criteria of a ``generate()``, and a memory of the rows that they have stopped.

    Attributes:
        ended_B: bool; None before the first token.
    """

    ended_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """As the criteria say, row by row."""
        ends_B = super().__call__(input_ids, scores, **kwargs)
        self.ended_B = ends_B if self.ended_B is None else self.ended_B | ends_B
        return ends_B


class StatefulGeneration(GenerationMixin):
    """``generate()`` of a model with linear sites; stands before the model's own class.

    A batch goes on until its last row has ended, and rows that ended are fed pads meanwhile. transformers gives those a
    1 in the mask, and keys can be hidden later; a state could not forget them. Here they get a 0 at once.
    """

    static_on_accelerators: ClassVar[bool] = False
    """Whether a model whose sites are all linear decodes with a static cache, and so compiled, where nobody asks for
    another one. Read where the model is on an accelerator."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As of every module.

        torch compiles from the first frame that is no part of it: with this one, hooks of the model are in the same
        graph as its ``forward``, and not three things to look up for each token.
        """
        return super().__call__(*args, **kwargs)

    def _sample(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Processes that wait for each other have to agree on the last step at once.
        with a_step_ahead(not kwargs.get("synced_gpus")):
            return self._sample_rows(input_ids, *args, **kwargs)

    def _sample_rows(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = passed_cache(kwargs)
        check_history(cache, kwargs.get("attention_mask"))
        criteria = kwargs.get("stopping_criteria")
        pads_rows = any(hasattr(criterion, "eos_token_id") for criterion in criteria or ())
        if not pads_rows or len(input_ids) == 1 or "attention_mask" not in kwargs:
            return super()._sample(input_ids, *args, **kwargs)
        if kwargs["attention_mask"] is None:
            # transformers drops a mask of ones and notes how long it was.
            length = getattr(kwargs["generation_config"], "_mask_length", input_ids.shape[1])
            kwargs["attention_mask"] = input_ids.new_ones(len(input_ids), length)
        kwargs["stopping_criteria"] = watching = RowsEnded(criteria)
        token = _watching.set(watching)
        try:
            return super()._sample(input_ids, *args, **kwargs)
        finally:
            _watching.reset(token)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(*args, **kwargs)
        watching, mask_BS = _watching.get(), updated.get("attention_mask")
        if watching is not None and watching.ended_B is not None and mask_BS is not None:
            mask_BS[:, -1].masked_fill_(watching.ended_B.to(mask_BS.device), 0)  # a tensor of this call
        return updated

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.static_on_accelerators and self._is_free_to_choose(generation_config, model_kwargs):
            generation_config.cache_implementation = "static"
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def _is_free_to_choose(self: Any, generation_config: Any, model_kwargs: Mapping[str, Any]) -> bool:
        return (
            self.device.type in ACCELERATORS
            and generation_config.cache_implementation is None
            and generation_config.use_cache is not False
            and generation_config.num_beams == 1
            and not generation_config.disable_compile
            and not generation_config.is_assistant
            and passed_cache(model_kwargs) is None
            and is_all_linear(self)
        )

    def _prepare_static_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_mixed_attentions(self)
        cache = super()._prepare_static_cache(*args, **kwargs)
        make_states_static(self, cache, self._previous_max_cache_length)
        return cache

    def create_masks_for_generate(self, **kwargs: Any) -> Any:
        """The masks of a step with a cache of fixed size.

        Where all slots are linear no mask over the tokens before is needed, and none is made.
        """
        slots = getattr(passed_cache(kwargs), "layers", ())
        if slots and isinstance(slots[0], StaticStateLayer) and slots[0].stands_alone:
            mask_BS, (batch, tokens) = kwargs.get("attention_mask"), kwargs["inputs_embeds"].shape[:2]
            if tokens > 1:
                return mask_BS
            if mask_BS is None:
                return torch.ones(batch, 1, 1, 1, dtype=torch.bool, device=kwargs["inputs_embeds"].device)
            # contiguous() leaves the stride of a batch of one, which grows with the mask: a graph for each token.
            return mask_BS[:, -1:].bool()[:, None, None].clone(memory_format=torch.contiguous_format)
        own = getattr(super(), "create_masks_for_generate", create_masks_for_generate)
        return own(**kwargs)

    def _prefill(self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """Reads the prompt; a model whose sites are all linear reads a long one in pieces by itself."""
        asked = generation_config.prefill_chunk_size
        is_long = input_ids.shape[1] > LONGEST_PIECE and model_kwargs.get("inputs_embeds") is None
        has_cache = passed_cache(model_kwargs) is not None
        if asked is None and is_long and has_cache and GOES_ON_IN_PIECES and is_all_linear(self):
            generation_config.prefill_chunk_size = LONGEST_PIECE
        try:
            return self._read_prompt(input_ids, generation_config, model_kwargs, **kwargs)
        finally:
            generation_config.prefill_chunk_size = asked

    def _read_prompt(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Reads the prompt, in pieces where the configuration asks for it, and never compiled.

        transformers compiles a prompt that it reads in pieces, each length anew, and takes none with images; here the
        first piece reaches to the end of the last image.
        """
        first = 0
        if generation_config.prefill_chunk_size is not None and kwargs.get("is_first_iteration", True):
            first = end_of_images(self.config, input_ids, model_kwargs)
            cache = passed_cache(model_kwargs)
            if not GOES_ON_IN_PIECES and (first or (cache is not None and int(cache.get_seq_length()))):
                raise ValueError(
                    "prefill_chunk_size is set for a prompt with images, or for a cache that has read tokens already: "
                    f"transformers {transformers.__version__} would read the prompt from its first token again. "
                    "Install transformers 5.23 or newer, or leave prefill_chunk_size out"
                )
        chunk_size, compiles_not = generation_config.prefill_chunk_size, generation_config.disable_compile
        generation_config.disable_compile = True
        try:
            if first > (chunk_size or 0):
                self._read_images(input_ids, first, model_kwargs)
                model_kwargs = {name: value for name, value in model_kwargs.items() if name not in RAW_IMAGES}
                kwargs["is_first_iteration"] = False
            return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)
        finally:
            generation_config.disable_compile = compiles_not

    def _read_images(self: Any, input_ids: Tensor, num_tokens: int, model_kwargs: Mapping[str, Any]) -> None:
        """Runs over the first tokens of a prompt, the images' among them."""
        by_token = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
        piece = {
            name: value[..., :num_tokens] if name in by_token and value is not None else value
            for name, value in model_kwargs.items()
        }
        inputs = self.prepare_inputs_for_generation(input_ids[:, :num_tokens], is_first_iteration=True, **piece)
        self(**inputs, return_dict=True)


def end_of_images(config: Any, ids_BT: Tensor, inputs: Mapping[str, Any]) -> int:
    """How many tokens of a prompt there are up to its last image token; 0 without images.

    All, where no token stands for an image.
    """
    if all(inputs.get(name) is None for name in RAW_IMAGES):
        return 0
    types_BT = next(
        (inputs[name] for name in ("mm_token_type_ids", "token_type_ids") if inputs.get(name) is not None), None
    )
    if types_BT is not None:
        image_BT = types_BT[:, : ids_BT.shape[1]] != 0
    else:
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        ids = [token for name in names if (token := getattr(config, name, None)) is not None]
        image_BT = torch.isin(ids_BT, torch.tensor(ids, device=ids_BT.device))
    at_T = image_BT.any(0).nonzero()
    return int(at_T[-1]) + 1 if len(at_T) else ids_BT.shape[1]


@functools.cache
def with_stateful_generation(base: Any) -> Any:
    """``base`` with the ``generate()`` of a model with linear sites, under its own name; one without it as it is."""
    if not issubclass(base, GenerationMixin) or issubclass(base, StatefulGeneration):
        return base

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        """Pickles by the base, since no module has this class by name."""
        _, _, *state = base.__reduce_ex__(self, protocol)
        return (_made_again, (base,), *state)

    members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (StatefulGeneration, base), {**members, "__reduce_ex__": __reduce_ex__})


def _made_again(base: Any) -> Any:
    made = with_stateful_generation(base)
    return made.__new__(made)


def generate_from_states(model: Any) -> None:
    """Gives a converted model the ``generate()`` of one with linear sites."""
    base: Any = type(model)
    model.__class__ = with_stateful_generation(base)
