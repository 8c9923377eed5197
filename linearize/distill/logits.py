"""A model's passes without logits, and its own way from final hidden states to logits.

What stands behind the output projection (a soft cap, a factor, a mask of tokens) is the model's own code and known to
nobody else. So it is the model that turns hidden states into logits, while what stands before the projection does not
run again.

Letters: B batch, T tokens, D model width, P positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearize.errors import PluginError
from linearize.protocols import Batch


@dataclass(frozen=True, slots=True)
class FinalHidden:
    """What the output projection would get, and how the model goes on from there.

    Attributes:
        x_BTD: final hidden states.
        to_logits: from hidden states [P, D] of any of the model's routes to the logits [P, V] that its forward gives.
    """

    x_BTD: Tensor
    to_logits: Callable[[Tensor], Tensor]


def final_hidden(model: nn.Module, batch: Batch) -> FinalHidden:
    """One pass in which no logit is computed.

    Raises:
        PluginError: the model's forward calls neither its ``base_model`` nor a transformers model inside it, so that
            what runs before the head cannot be told from what runs behind it; or it calls no output embeddings; or
            it has no ``base_model`` and changes logits behind the head.
    """
    head, base = _head(model), _before_head(model)
    kept: list[Tensor] = []
    answers: list[tuple[nn.Module, Any]] = []
    made_up: list[Tensor] = []
    with without_logits(model, kept), _answers_of(base, answers), _making_up_logits(head, made_up, base is None):
        output = model(**batch.inputs, use_cache=False)
    if not kept or (base is not None and not answers):
        raise PluginError(
            f"the final hidden states of this {type(model).__name__} cannot be found: its forward calls "
            f"{'no output embeddings' if not kept else 'neither its base_model nor a PreTrainedModel inside that'}. "
            "An objective over logits needs both: give its class get_output_embeddings() and a base_model_prefix, the "
            "name of its attribute that holds all which runs before the head, and let its forward call that once"
        )
    if base is None:
        _refuse_changed_logits(model, output.logits, made_up[0])
        return FinalHidden(kept[0], head)
    module, before_head = answers[-1]

    def to_logits(x_PD: Tensor) -> Tensor:
        def put(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (x_PD[None], *args[1:])

        with _hooked(head.register_forward_pre_hook(put)), _answering(module, before_head):
            logits_PV: Tensor = model(**batch.inputs, use_cache=False).logits[0]
        return logits_PV

    return FinalHidden(kept[0], to_logits)


@contextmanager
def without_logits(model: nn.Module, kept: list[Tensor] | None = None) -> Iterator[None]:
    """Inside, the output projection gets no token; its input is put into ``kept``.

    A hook and not `logits_to_keep`: every transformers model has output embeddings, but not all have that argument.
    """

    def empty(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if kept is not None:
            kept.append(args[0])
        return (args[0][:, :0], *args[1:])

    with _hooked(_head(model).register_forward_pre_hook(empty)):
        yield


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


def _before_head(model: Any) -> Any:
    """The module that gives the final hidden states, or None: then the projection's output is taken for the logits."""
    base = getattr(model, "base_model", model)
    head = _head(model)
    return None if any(module is head for module in base.modules()) else base


@contextmanager
def _making_up_logits(head: nn.Module, made_up: list[Tensor], wanted: bool) -> Iterator[None]:
    """Inside, where ``wanted``, ``head`` gives integers of two tokens, in place of none; they are put into ``made_up``.

    From -128 to 128, which every dtype holds: large enough for a soft cap to show, and no cast changes them.
    """

    def make_up(_: nn.Module, args: Any, output_B0V: Tensor) -> Tensor | None:
        if not wanted:
            return None
        shape = (output_B0V.shape[0], 2, output_B0V.shape[-1])
        numbers = torch.arange(math.prod(shape), device=output_B0V.device) % 257 - 128
        made_up.append(numbers.view(shape))
        return made_up[-1].to(output_B0V.dtype)

    with _hooked(head.register_forward_hook(make_up)):
        yield


def _refuse_changed_logits(model: nn.Module, logits_B2V: Tensor, made_up_B2V: Tensor) -> None:
    if not torch.equal(logits_B2V, made_up_B2V.to(logits_B2V)):
        raise PluginError(
            f"this {type(model).__name__} changes logits behind its output projection, as by a factor, a soft cap or a "
            "mask; an objective over logits would not see that: give its class a base_model_prefix, the name of its "
            "attribute that holds all which runs before the head, without the head itself, and let its forward call "
            "that once"
        )


@contextmanager
def _answers_of(base: nn.Module | None, answers: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Inside, what ``base`` and the models in it give, with who gave it; the last one gave the final hidden states.

    Some forwards pass ``base`` by and call a model inside it, as OPT's its decoder; of models that call each other the
    outermost ends last.
    """

    def note(module: nn.Module, _: Any, output: Any) -> None:
        answers.append((module, output))

    from transformers import PreTrainedModel  # whoever only plans a stage does without models

    inside = [] if base is None else [one for one in base.modules() if one is base or isinstance(one, PreTrainedModel)]
    hooks = [module.register_forward_hook(note) for module in inside]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _hooked(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _answering(module: Any, output: Any) -> Iterator[None]:
    """Inside, a call of ``module`` gives ``output``; a hook could not keep it from running."""
    own = vars(module).get("forward")
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
