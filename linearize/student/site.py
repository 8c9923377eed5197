"""One slot of the decoder with the teacher's attention and the student's mixer in it, and a switch between them.

Letters: B batch, T tokens, D model width, N query heads, V value width per head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from linearize.protocols import AttentionSite
from linearize.student.entrance import SEGMENTS, Documents
from linearize.student.state import RecurrentStateLayer, passed_cache, state_layer, stored_dtypes, token_validity


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCapture:
    """What the teacher's attention got and gave at one site; all tensors are detached.

    Attributes:
        x_BTD: the input of the attention, after the layer's norm.
        target_BTNV: its output per head, before the output projection.
        valid_BT: bool, False at pads; None where all tokens are real.
        position: cos and sin of the rotary embedding as the decoder passes them; None without one.
        segments_BT: int64, changing where a packed document begins; None where a row is one document.
    """

    site: AttentionSite
    x_BTD: Tensor
    target_BTNV: Tensor
    valid_BT: Tensor | None
    position: tuple[Tensor, Tensor] | None
    segments_BT: Tensor | None = None


def rotary_angles(position: Any) -> tuple[Tensor, Tensor] | None:
    """Cos and sin of what a decoder passes as ``position_embeddings``.

    That is both already, or one complex number for each pair, as in Llama 4; then each comes twice, side by side.
    """
    if isinstance(position, Tensor) and position.is_complex():
        position = (position.real.repeat_interleave(2, dim=-1), position.imag.repeat_interleave(2, dim=-1))
    return position


def every_token(x_BTD: Tensor) -> Tensor:
    """[B, T] bool, True everywhere."""
    return x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool)


def _takes_by_name(attention: nn.Module) -> bool:
    """Whether the input goes to ``hidden_states``; a layer may also pass it first, whatever it is called there."""
    parameters = inspect.signature(attention.forward).parameters
    has_first = any(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters.values())
    return "hidden_states" in parameters or not has_first


Observer: TypeAlias = Callable[[SiteCapture, nn.Module], None]


class LinearizedAttention(nn.Module):
    """Takes the place of an attention module and is called the same way: keywords in, ``(output, None)`` out.

    The teacher route calls the attention exactly as the decoder would, so it is equal to the teacher bit by bit. The
    student route runs the mixer, or at a kept site the attention too.

    Attributes:
        attention: the teacher's own module, unmodified; None once the teacher is released.
        mixer: None where the site keeps its attention for good.
        o_proj: the teacher's output projection, the same module as the attention's own.
        linear: whether the student route runs the mixer.
        runs_teacher: whether the teacher route is on; ``convert.teacher_route`` sets it.
        observer: called in the teacher route with what was captured and the mixer; turns gradients on if it wants any.
        documents: where they begin, while a call of the model runs that says so; see ``entrance``.
        config: the model's configuration, whose ``state_dtype`` is read when a cache's slot is made.
    """

    config: Any = None

    def __init__(
        self, site: AttentionSite, attention: nn.Module | None, mixer: nn.Module | None, o_proj: nn.Module
    ) -> None:
        super().__init__()
        self.site = site
        self.attention = attention
        self.mixer = mixer
        self.o_proj = o_proj
        self.linear = mixer is not None
        self.runs_teacher = False
        self.observer: Observer | None = None
        self.documents: Documents | None = None
        self._takes_input_by_name = attention is None or _takes_by_name(attention)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The attention's output [B, T, D], and its attention weights where it returns them.

        Args:
            kwargs: whatever the decoder passes to its attention; the mixer reads ``attention_mask``,
                ``position_embeddings`` and the ``Cache`` among them.
        """
        if self.runs_teacher and self.observer is not None:
            return self._observe(hidden_states, kwargs, self.observer)
        if self.runs_teacher or not self.linear:
            return self._attend(hidden_states, kwargs)
        return self._mix(hidden_states, kwargs), None

    def extra_repr(self) -> str:
        """The site's number and which route the student takes."""
        return f"site={self.site.index}, linear={self.linear}"

    def _attend(self, x_BTD: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        if self.attention is None:
            raise RuntimeError(
                f"site {self.site.index} ({self.site.path}) has no attention any more: its teacher was released"
            )
        output: tuple[Tensor, Tensor | None]
        if self._takes_input_by_name:
            output = self.attention(hidden_states=x_BTD, **kwargs)
        else:
            output = self.attention(x_BTD, **kwargs)
        return output

    def _mix(self, x_BTD: Tensor, kwargs: dict[str, Any]) -> Tensor:
        assert self.mixer is not None  # set_linear lets no site without a mixer become linear
        cache = passed_cache(kwargs)
        slot = None if cache is None else state_layer(cache, self.site.cache_index, self._new_slot)
        valid_BT = self.validity(x_BTD, kwargs, 0 if slot is None else slot.progress.seen)
        y_BTNV, state = self.mixer(
            x_BTD,
            valid_BT=valid_BT,
            position=self._position(kwargs),
            segments_BT=self._segments(x_BTD, kwargs),
            state=None if slot is None else slot.read(),
        )
        if slot is not None:
            slot.put(x_BTD.shape[1], state, valid_BT)
        # A mixer may keep its recurrence in fp32; the projection works in the dtype of the residual stream.
        output_BTD: Tensor = self.o_proj(y_BTNV.flatten(-2).to(x_BTD.dtype))
        return output_BTD

    def stored_dtypes(self) -> dict[str, torch.dtype]:
        """See :func:`linearize.student.state.stored_dtypes`."""
        return stored_dtypes(self.mixer, self.config)

    def _new_slot(self) -> RecurrentStateLayer:
        return RecurrentStateLayer(self.stored_dtypes())

    def _observe(self, x_BTD: Tensor, kwargs: dict[str, Any], observer: Observer) -> tuple[Tensor, Tensor | None]:
        assert self.mixer is not None  # observe() takes only sites with a mixer
        cache = passed_cache(kwargs)
        valid_BT = self.validity(x_BTD, kwargs, 0 if cache is None else cache.get_seq_length(self.site.cache_index))
        segments_BT = self._segments(x_BTD, kwargs)
        projected: list[Tensor] = []
        handle = self.o_proj.register_forward_pre_hook(lambda _, inputs: projected.append(inputs[0].detach()))
        try:
            output = self._attend(x_BTD, kwargs)
        finally:
            handle.remove()
        if len(projected) != 1:
            raise RuntimeError(
                f"the attention of site {self.site.index} called '{self.site.output_projection}' {len(projected)} "
                "times; linearize reads its per-head output there and needs exactly one call"
            )
        observer(
            SiteCapture(
                site=self.site,
                x_BTD=x_BTD.detach(),
                target_BTNV=projected[0].unflatten(-1, (self.site.num_heads, self.site.value_dim)),
                valid_BT=valid_BT,
                position=self._position(kwargs),
                segments_BT=segments_BT,
            ),
            self.mixer,
        )
        return output

    def _position(self, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        return rotary_angles(kwargs.get("position_embeddings")) if self.site.has_rope else None

    def _segments(self, x_BTD: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
        keyword: Tensor | None = kwargs.get(SEGMENTS)
        return keyword if self.documents is None else self.documents.at(x_BTD, keyword, self.site)

    def validity(self, x_BTD: Tensor, kwargs: Mapping[str, Any], seen: int | Tensor = 0) -> Tensor | None:
        """[B, T] bool, False at pads, from the mask that the decoder passed; None where all tokens are real."""
        valid_BT = token_validity(kwargs.get("attention_mask"), x_BTD.shape[1], seen)
        return None if valid_BT is None else valid_BT.expand(x_BTD.shape[0], -1)


def linearized_sites(model: nn.Module) -> list[LinearizedAttention]:
    """Every converted site, by index; after ``release_teacher`` only the linear ones are left."""
    found = [module for module in model.modules() if isinstance(module, LinearizedAttention)]
    return sorted(found, key=lambda slot: slot.site.index)
