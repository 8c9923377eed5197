"""What an attention module does with its queries, keys and values, found by running it.

Its own forward runs on a few tokens, in a copy whose projections give numbers drawn here and whose norms give what they
get, so that no weight is needed. transformers' attention interface then shows what reaches the scores, and the output
projection what becomes of the result. Letters: T tokens, N query heads, M key-value heads, K width of a query or key
head, V of a value head, R width of a head that turns.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from linearize_transformers.attention import NORM_NAMES, Form, HeadShape

INTERFACE = "linearize_probe"
TOKENS = 3
SIZE = 100.0
"""Of the drawn numbers: beyond what models clamp theirs to."""
Turn = Literal["none", "half", "interleaved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What the module was seen to do.

    Attributes:
        turn: which numbers of a head turn together by ``position_embeddings``.
        clip: what queries, keys and values are clamped to; None: they are not.
        scale: factor on q·k before the softmax.
        passes_window: whether the module tells the attention interface of a window, which may be None.
        window: the window that it tells.
        goes_without: whether it runs without ``position_embeddings`` too; then its decoder decides whether it turns.
    """

    turn: Turn
    clip: float | None
    scale: float
    passes_window: bool
    window: int | None
    goes_without: bool


class NotUnderstood(ValueError):
    """The module ran, and does something that a site cannot say; the text says what."""


@dataclass(slots=True)
class _Scores:
    """What the attention interface got."""

    q_NTK: Tensor
    k_MTK: Tensor
    v_MTV: Tensor
    options: dict[str, Any]


class _Gives(nn.Module):
    """In the place of a projection: the same tensor for every input."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor
        self.weight = tensor  # some modules ask a projection for its dtype

    def forward(self, _: Tensor) -> Tensor:
        return self.tensor.clone()


class _Keeps(nn.Module):
    """In the place of the output projection: notes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Tensor | None = None
        self.weight = torch.zeros(1)

    def forward(self, x_BTX: Tensor) -> Tensor:
        self.got = x_BTX
        return x_BTX


_SEEN: list[_Scores] = []
_RESULT: list[Tensor] = []


def _interface(_: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
    _SEEN.append(_Scores(query[0], key[0], value[0], options))
    result_BTNV = torch.randn(1, query.shape[2], query.shape[1], value.shape[3], dtype=query.dtype)
    _RESULT.append(result_BTNV)
    return result_BTNV, None


AttentionInterface.register(INTERFACE, _interface)


@torch.no_grad()
def probe(attention: Any, form: Form, shape: HeadShape) -> Probed | None:
    """What the module does; None where it cannot be run so, as without transformers' attention interface.

    Args:
        attention: may be on the meta device; it is not changed.

    Raises:
        NotUnderstood: it turns, scales or changes its queries, keys, values or output as no site can say.
    """
    if not hasattr(attention, "config"):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = _draw(form, shape)
        for position in _positions(attention, shape.key_dim):
            got = _run(attention, form, given, position)
            if got is not None:
                scores, result_BTNV = _SEEN[0], _RESULT[0]
                without = _run(attention, form, given, None) is not None
                return _read(scores, result_BTNV, got, given, position, form, shape, goes_without=without)
    return None


def _run(attention: Any, form: Form, given: dict[str, Tensor], position: Any) -> Tensor | None:
    """What the output projection gets; None where the module does not run with such positions."""
    _SEEN.clear()
    _RESULT.clear()
    twin, kept = _twin(attention, form, given)
    try:
        twin(**_arguments(twin, position))
    except Exception:  # not these positions, or not this module: whoever runs the teacher proves it then
        return None
    return kept.got if len(_SEEN) == 1 else None


def _draw(form: Form, shape: HeadShape) -> dict[str, Tensor]:
    """For each projection what it gives: [1, T, rows]."""
    widths = {"q": shape.num_heads * shape.key_dim, "k": shape.num_key_value_heads * shape.key_dim}
    widths["v"] = shape.num_key_value_heads * shape.value_dim
    if form.split is not None:
        rows = {form.projections[0]: sum(widths.values())}
    else:
        rows = dict(zip(form.projections, widths.values(), strict=True))
        if form.gate_in_query:
            rows[form.projections[0]] *= 2
    return {name: SIZE * torch.randn(1, TOKENS, width) for name, width in rows.items()}


def _positions(attention: Any, key_dim: int) -> Iterator[Any]:
    """Forms in which positions may come. Every pair turns alike, so that one number or two for each is the same."""
    partial = getattr(attention, "partial_rotary_factor", None)
    parameters = getattr(getattr(attention, "config", None), "rope_parameters", None) or {}
    for values in (parameters, *(one for one in parameters.values() if isinstance(one, dict))):
        partial = values.get("partial_rotary_factor", partial)
    said = getattr(attention, "rotary_ndims", None) or getattr(attention, "rotary_dim", None)
    widths = [int(key_dim * (partial or 1.0)), said, key_dim]
    angle_T = torch.tensor([0.0, 0.7, 1.9])
    for width in dict.fromkeys(int(one) for one in widths if one):
        angle_1TR = angle_T[None, :, None].expand(1, TOKENS, width)
        yield angle_1TR.cos(), angle_1TR.sin()
    yield torch.polar(torch.ones(1, TOKENS, key_dim // 2), angle_T[None, :, None].expand(1, TOKENS, key_dim // 2))


def _arguments(twin: nn.Module, position: Any) -> dict[str, Any]:
    every = {
        "hidden_states": torch.zeros(1, TOKENS, 1),
        "attention_mask": None,
        "position_embeddings": position,
        "position_ids": torch.arange(TOKENS)[None],
        "shared_kv_states": None,
    }
    named = inspect.signature(twin.forward).parameters
    return {name: value for name, value in every.items() if name in named or name == "position_ids"}


def _twin(attention: Any, form: Form, given: dict[str, Tensor]) -> tuple[Any, _Keeps]:
    """The module with other children and another attention interface; it shares all else with the original."""
    twin: Any = object.__new__(type(attention))
    twin.__dict__.update(attention.__dict__)
    twin._modules = dict(attention._modules)
    twin.training = False
    kept = _Keeps()
    for name in NORM_NAMES & twin._modules.keys():
        twin._modules[name] = nn.Identity()
    for name, tensor in given.items():
        twin._modules[name] = _Gives(tensor)
    twin._modules[form.output] = kept
    twin.config = copy.copy(attention.config)
    twin.config._attn_implementation = INTERFACE
    return twin, kept


def _read(
    scores: _Scores,
    result_BTNV: Tensor,
    got_BTX: Tensor,
    given: dict[str, Tensor],
    position: Any,
    form: Form,
    shape: HeadShape,
    *,
    goes_without: bool,
) -> Probed:
    q_NTK, k_MTK, v_MTV = _heads(given, form, shape)
    if not torch.equal(got_BTX.flatten(), result_BTNV.flatten()) and not form.gate_in_query:
        raise NotUnderstood("it changes the output of its heads before the output projection, as by a gate or a norm")
    found_k_MTK, found_v_MTV = (
        part[:: part.shape[0] // shape.num_key_value_heads] for part in (scores.k_MTK, scores.v_MTV)
    )
    top = float(found_v_MTV.abs().max())
    clip = top if top < float(v_MTV.abs().max()) else None
    if clip is not None:
        q_NTK, k_MTK, v_MTV = (part.clamp(-clip, clip) for part in (q_NTK, k_MTK, v_MTV))
    if not _near(found_v_MTV, v_MTV):
        raise NotUnderstood("it changes its values otherwise than by a norm or by clamping them")
    for turn in ("none", "half", "interleaved"):
        factors = [
            _factor(found, _turned(part, position, turn))
            for found, part in ((scores.q_NTK, q_NTK), (found_k_MTK, k_MTK))
        ]
        if factors[0] is not None and factors[1] is not None:
            scale = scores.options.get("scaling")
            scale = shape.key_dim**-0.5 if scale is None else float(scale)
            window = scores.options.get("sliding_window")
            return Probed(
                turn=turn,
                clip=clip,
                scale=scale * factors[0] * factors[1],
                passes_window="sliding_window" in scores.options,
                window=None if window is None else int(window),
                goes_without=goes_without,
            )
    raise NotUnderstood(
        "between their projections and the scores its queries and keys are changed otherwise than by a norm, by "
        "clamping them, by a factor, or by turning pairs of numbers by position_embeddings"
    )


def _heads(given: dict[str, Tensor], form: Form, shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [heads, T, width] as the form says that they lie in what the projections give."""
    rows = [given[name][0].T for name in form.projections]
    q, k, v = rows if form.split is None else form.split(rows[0], shape)
    if form.gate_in_query:
        q = q.unflatten(0, (shape.num_heads, 2, shape.key_dim))[:, 0].flatten(0, 1)
    heads = (shape.num_heads, shape.num_key_value_heads, shape.num_key_value_heads)
    q, k, v = (part.unflatten(0, (number, -1)).transpose(1, 2) for part, number in zip((q, k, v), heads, strict=True))
    return q, k, v


def _turned(x_HTK: Tensor, position: Any, turn: Turn) -> Tensor:
    if turn == "none":
        return x_HTK
    if isinstance(position, Tensor):
        cos_TR, sin_TR = (part[0].repeat_interleave(2, -1) for part in (position.real, position.imag))
    else:
        cos_TR, sin_TR = position[0][0], position[1][0]
    width = cos_TR.shape[-1]
    x, rest = x_HTK[..., :width], x_HTK[..., width:]
    if turn == "half":
        first, second = x.chunk(2, -1)
        across = torch.cat([-second, first], -1)
    else:
        across = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return torch.cat([x * cos_TR + across * sin_TR, rest], -1)


def _factor(found: Tensor, expected: Tensor) -> float | None:
    """The number that ``expected`` has to be multiplied by to be what was found; None where there is none."""
    if found.shape != expected.shape:
        return None
    factor = float((found.double() * expected.double()).sum() / expected.double().square().sum())
    return (1.0 if abs(factor - 1) < 1e-5 else factor) if _near(found, factor * expected) else None


def _near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
