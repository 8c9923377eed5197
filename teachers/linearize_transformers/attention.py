"""How the attention modules of transformers store their projections, as data; and those projections one by one.

Letters: N query heads, M key-value heads, K width of one query or key head, V of one value head, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Split = Callable[[Tensor, "HeadShape"], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """Numbers and widths of heads."""

    num_heads: int
    num_key_value_heads: int
    key_dim: int
    value_dim: int


def split_blocks(fused: Tensor, shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """All queries, then all keys, then all values."""
    q, k, v = fused.split(
        [
            shape.num_heads * shape.key_dim,
            shape.num_key_value_heads * shape.key_dim,
            shape.num_key_value_heads * shape.value_dim,
        ]
    )
    return q, k, v


def split_per_head(fused: Tensor, shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of the first head, then those of the second, and so on; as many key heads as query heads."""
    q, k, v = fused.unflatten(0, (shape.num_heads, 3, shape.key_dim)).unbind(1)
    return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to store a softmax attention.

    Attributes:
        name: as docs/teachers.md shows it.
        projections: attributes that hold nn.Linear modules: q, k and v, or one that holds all three.
        output: the attribute of the output projection.
        split: how the one fused projection is cut; None for three.
        gate_in_query: whether each head's rows of the query projection are followed by as many of a gate: the output
            is multiplied by its sigmoid.
    """

    name: str
    projections: tuple[str, ...]
    output: str
    split: Split | None = None
    gate_in_query: bool = False


SEPARATE = ("q_proj", "k_proj", "v_proj")
GATED = Form(name="q with gate per head, k, v, o", projections=SEPARATE, output="o_proj", gate_in_query=True)
FORMS = (
    Form(name="q, k, v, o", projections=SEPARATE, output="o_proj"),
    Form(name="q, k, v, out", projections=SEPARATE, output="out_proj"),
    Form(name="q, k, v, dense", projections=SEPARATE, output="dense"),
    Form(name="q, k as v too, o", projections=("q_proj", "k_proj", "k_proj"), output="o_proj"),
    Form(name="fused qkv in blocks", projections=("qkv_proj",), output="o_proj", split=split_blocks),
    Form(name="fused qkv per head", projections=("query_key_value",), output="dense", split=split_per_head),
)
GATE_IN_QUERY = frozenset({"Qwen3NextAttention", "Qwen3_5Attention", "Qwen3_5MoeAttention"})
"""Attentions of the form GATED; their modules have no other names than those without a gate."""
NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("qk_norm", "qk_norm"))
NORM_NAMES = {"v_norm", *(name for pair in NORMS for name in pair)}


def find_form(attention: nn.Module) -> Form | None:
    """The form whose projections the module has, all as nn.Linear; None where none fits."""
    for form in (GATED,) if type(attention).__name__ in GATE_IN_QUERY else FORMS:
        modules = [getattr(attention, name, None) for name in (*form.projections, form.output)]
        if all(isinstance(module, nn.Linear) for module in modules):
            return form
    return None


def find_norms(attention: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms of queries and keys; None where there are none."""
    for q_name, k_name in NORMS:
        q_norm, k_norm = getattr(attention, q_name, None), getattr(attention, k_name, None)
        if q_norm is not None:
            return q_norm, k_norm
    return None, None


def unclaimed_tensors(attention: nn.Module, form: Form) -> list[str]:
    """Parameters and buffers of the module that ``form`` and the norms say nothing of."""
    claimed = {*form.projections, form.output, *(name for pair in NORMS for name in pair)}
    names = [name for name, _ in (*attention.named_parameters(), *attention.named_buffers())]
    return [name for name in names if name.split(".")[0] not in claimed]


def head_shape(attention: nn.Module, form: Form, config: Any) -> HeadShape:
    """Heads and widths, from the shapes of the projections as far as they tell."""
    key_dim = next(
        (int(value) for name in ("head_dim", "head_size") if (value := getattr(attention, name, None)) is not None),
        config.hidden_size // config.num_attention_heads,
    )
    if form.split is not None:
        num_heads = int(config.num_attention_heads)
        rows = getattr(attention, form.projections[0]).out_features
        per_group = rows - num_heads * key_dim
        return HeadShape(
            num_heads=num_heads, num_key_value_heads=per_group // (2 * key_dim), key_dim=key_dim, value_dim=key_dim
        )
    q, k, v = (getattr(attention, name).out_features for name in form.projections)
    num_key_value_heads = k // key_dim
    return HeadShape(
        num_heads=q // key_dim // (2 if form.gate_in_query else 1),
        num_key_value_heads=num_key_value_heads,
        key_dim=key_dim,
        value_dim=v // max(num_key_value_heads, 1),
    )


def fits(attention: nn.Module, form: Form, shape: HeadShape) -> bool:
    """Whether the projections are exactly as large as the heads ask."""
    q, k = shape.num_heads * shape.key_dim, shape.num_key_value_heads * shape.key_dim
    v, o = shape.num_key_value_heads * shape.value_dim, shape.num_heads * shape.value_dim
    rows = [getattr(attention, name).out_features for name in form.projections]
    grouped = shape.num_key_value_heads > 0 and shape.num_heads % shape.num_key_value_heads == 0
    due = [2 * q if form.gate_in_query else q, k, v] if form.split is None else [q + k + v]
    return grouped and rows == due and getattr(attention, form.output).in_features == o


def separate(
    attention: nn.Module, form: Form, shape: HeadShape
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Weights and biases of q, k and v."""
    linears = [getattr(attention, name) for name in form.projections]
    if form.split is None:
        (q, k, v), (bq, bk, bv) = (one.weight for one in linears), (one.bias for one in linears)
        if form.gate_in_query:
            q, bq = (_of_each_head(rows, shape, 0) for rows in (q, bq))
        return (q, k, v), (bq, bk, bv)
    (fused,) = linears
    weights = form.split(fused.weight, shape)
    return weights, (None, None, None) if fused.bias is None else form.split(fused.bias, shape)


def output_gate(attention: nn.Module, form: Form, shape: HeadShape) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of the gate on the output; None where it has none."""
    if not form.gate_in_query:
        return None, None
    query = getattr(attention, form.projections[0])
    return _of_each_head(query.weight, shape, 1), _of_each_head(query.bias, shape, 1)


def _of_each_head(rows: Tensor | None, shape: HeadShape, half: int) -> Tensor | None:
    """The first or second half of each head's rows."""
    return None if rows is None else rows.unflatten(0, (shape.num_heads, 2, shape.key_dim))[:, half].flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormFacts:
    """What a norm over heads does: ``weight * normalised(x) + bias``."""

    kind: Literal["rms", "layer"]
    weight: Tensor
    bias: Tensor | None
    eps: float


def norms_of_heads(norm: nn.Module) -> list[nn.Module]:
    """The norms of one head each that the module is made of; empty where it is one norm."""
    return [one for child in norm.children() if isinstance(child, nn.ModuleList) for one in child]


@torch.no_grad()
def read_norm(norm: nn.Module, shape: tuple[int, ...], like: Tensor) -> NormFacts:
    """The norm's effect, found by running it: some classes store a weight, others a weight minus one.

    A row of equal numbers comes out of an RMS norm as its weight and of a LayerNorm as its bias; a row of +c and -c as
    plus and minus the weight, with the bias on top.

    Args:
        shape: of one input, such as (K,) for a norm over each head, or (N*K,) for one over all of them.
        like: has the dtype and the device of the norm's input.
    """
    apart = norms_of_heads(norm)
    if apart:
        each = [read_norm(one, shape[-1:], like) for one in apart]
        biases = [one.bias for one in each if one.bias is not None]
        return NormFacts(
            kind=each[0].kind,
            weight=torch.stack([one.weight for one in each]),
            bias=torch.stack(biases) if len(biases) == len(each) else None,
            eps=each[0].eps,
        )
    reference = next(norm.parameters(), like)
    width = shape[-1]
    level = 1024.0  # so large that eps, some 1e-6, is below float32's resolution of its square
    signs = torch.ones(width, device=reference.device)
    signs[1::2] = -1.0
    if width % 2:
        raise ValueError(f"a norm over {width} numbers, an odd count, cannot be read; heads have an even width")

    def run(row: Tensor) -> Tensor:
        result: Tensor = norm((row * level).expand(*shape).to(reference.dtype)[None])[0].float()
        return result

    plus, minus, flat = run(signs), run(-signs), run(torch.ones_like(signs))
    weight, bias = (plus - minus) / 2 * signs, (plus + minus) / 2
    kind: Literal["rms", "layer"] = "rms" if torch.allclose(flat, weight + bias, atol=1e-4) else "layer"
    eps = next((float(v) for name in ("eps", "variance_epsilon", "epsilon") if (v := getattr(norm, name, None))), 1e-6)
    return NormFacts(
        kind=kind,
        weight=weight.to(reference.dtype),
        bias=bias.to(reference.dtype) if bool(bias.abs().max() > 0) else None,
        eps=eps,
    )


@torch.no_grad()
def value_norm_eps(attention: Any) -> float | None:
    """What a norm of values without a weight adds to their mean square; None where values have no norm.

    Raises:
        ValueError: it is another norm than x / rms(x).
    """
    norm = getattr(attention, "v_norm", None)
    if norm is None:
        return None
    x = torch.tensor([[3.0, -1.0, 2.0, 4.0]])
    if not torch.allclose(norm(x), x * x.square().mean().rsqrt(), atol=1e-3):
        raise ValueError(f"v_norm ({type(norm).__name__}) does something else than x / rms(x)")
    return float(norm.eps)
