"""What to look at when an adapter's weights do not reproduce an attention.

Usual mistakes are undone, alone and a few at a time; those whose undoing reproduces the output are named. Where none
does, the message says which half of the computation is wrong and which parameters were forgotten.

Letters: B batch, Q tokens whose output is compared, N query heads, V width of a value head, R width of the part of a
head that the rotary embedding turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from linearize.proof.case import Case
from linearize.protocols import AttentionSite, AttentionWeights

Style = Literal["half", "interleaved"]
Change = Callable[[Case], Case]
PARTS = ("q", "k", "v")
QUICK = 24
"""Tokens on which a repair is tried before it is tried on all."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What would be otherwise, in words that follow "It would be right ", and as a change of the case."""

    words: str
    change: Change


NO_REPAIR = Repair("", lambda case: case)


@torch.no_grad()
def explain(case: Case) -> str:
    """Sentences on what is wrong and what to do about it."""
    for repairs in _combinations(case):
        repaired = case
        for repair in repairs:
            repaired = repair.change(repaired)
        # Where tokens see later ones, the first of them say nothing alone.
        if (repaired.site.own_mask or repaired.fits(QUICK)) and repaired.fits():
            return f"It would be right {', and '.join(repair.words for repair in repairs if repair.words)}."
    found = [_where(case)]
    forgotten = _forgotten(case)
    if forgotten:
        found.append(f"The module has parameters whose numbers are in no tensor of weights(site): {forgotten}.")
    found.append(
        "If none of this helps, take a model without biases and norms, whose v the first token shows by itself, and "
        "put them back one at a time."
    )
    return " ".join(found)


def _combinations(case: Case) -> Iterator[tuple[Repair, ...]]:
    """Single repairs first; then up to one of each kind: whose rows of a fused matrix are, scale, pairs, window."""
    weights, site = case.weights, case.site
    # A reading of the rows is worth trying with other repairs only if its v is right, which the first token shows.
    readings = [one for one in _readings(case) if one.change(case).fits(1)]
    scales, turns, seen = _scales(weights, site), _turns(case), _seen(case)
    every = _moved_pairs(case, all_at_once=True)
    singles = (scales, turns, seen, every, _moved_pairs(case, all_at_once=False), readings, _others(case))
    for repair in itertools.chain(*singles):
        yield (repair,)
    kinds = ([NO_REPAIR, *readings], [NO_REPAIR, *scales], [NO_REPAIR, *turns, *every], [NO_REPAIR, *seen])
    yield from sorted(itertools.product(*kinds), key=lambda repairs: sum(bool(one.words) for one in repairs))


def _scales(weights: AttentionWeights, site: AttentionSite) -> list[Repair]:
    values = {
        "site.key_dim ** -0.5": site.key_dim**-0.5,
        "1 / site.key_dim": 1 / site.key_dim,
        "1.0": 1.0,
        "site.hidden_size ** -0.5": site.hidden_size**-0.5,
    }
    return [
        Repair(f"with scale = {name} (weights(site) says {weights.scale:.6g})", _weights(scale=value))
        for name, value in values.items()
        if value != weights.scale
    ]


def _turns(case: Case) -> list[Repair]:
    """Other rotary embeddings."""
    weights, repairs = case.weights, []
    if weights.rope_theta is not None:
        words = "with rope_theta = None: this attention does not turn q and k (has_rope = False at the site, too)"
        repairs.append(Repair(words, _weights(rope_theta=None)))
    styles: tuple[tuple[Style, str], ...] = (
        ("half", "i and i + R/2 of a head (say so at the site, too)"),
        (
            "interleaved",
            "2i and 2i + 1 of a head. Say so at the site, too; or move the rows of q and k so that pairs stand R/2 "
            "apart (docs/write_a_teacher.md has the code)",
        ),
    )
    for style, pairs in styles:
        if case.position is not None and (weights.rope_theta is None or style != weights.rope_style):
            words = f'with a rope_theta and rope_style = "{style}": this attention turns together numbers {pairs}'
            repairs.append(Repair(words, _weights(rope_theta=weights.rope_theta or 1.0, rope_style=style)))
    return repairs


def _seen(case: Case) -> list[Repair]:
    """Other windows, and what the decoder's mask shows."""
    window, repairs = case.weights.window, []
    sizes = [] if window is None else [window - 1, window + 1]
    if case.sees_BQT is not None:
        sizes.append(int(case.sees_BQT[0].sum(-1).max()))
    if window is not None:
        repairs.append(Repair("with window = None", _weights(window=None)))
    for size in dict.fromkeys(sizes):
        if size > 0 and size != window:
            words = f"with window = {size}; the query's own token counts"
            repairs.append(Repair(words, _weights(window=size)))
    if case.sees_BQT is not None and not case.site.own_mask:
        words = (
            "with own_mask = True at the site: the decoder's mask lets some tokens see others than those before them "
            "(say in caveats() which, since no mixer follows)"
        )
        repairs.append(Repair(words, _site(own_mask=True)))
    return repairs


def _others(case: Case) -> list[Repair]:
    weights, repairs = case.weights, []
    if weights.q_norm is not None or weights.k_norm is not None:
        norm = "layer" if weights.norm == "rms" else "rms"
        repairs.append(Repair(f'with norm = "{norm}"', _weights(norm=norm)))
        unnormed = dict.fromkeys(("q_norm", "k_norm", "q_norm_bias", "k_norm_bias"))
        repairs.append(Repair("without q_norm and k_norm", _weights(**unnormed)))
        if weights.q_norm is not None and weights.k_norm is not None:
            more = _weights(q_norm=weights.q_norm + 1, k_norm=weights.k_norm + 1)
            repairs.append(Repair("with 1 added to q_norm and k_norm", more))
    if case.site.qkv_clip is None:
        # What is clamped shows where it is largest: an output is a mean of values.
        level = float(f"{float(case.found().abs().max()):.4g}")
        repairs.append(Repair(f"with qkv_clip = {level:g} at the site: q, k and v are clamped", _site(qkv_clip=level)))
    else:
        repairs.append(Repair("with qkv_clip = None at the site", _site(qkv_clip=None)))
    if weights.gate is not None:
        repairs.append(Repair("with gate = None", _weights(gate=None, gate_bias=None)))
    if weights.softcap is not None:
        repairs.append(Repair("with softcap = None", _weights(softcap=None)))
    if weights.v_norm_eps is not None:
        repairs.append(Repair("with v_norm_eps = None", _weights(v_norm_eps=None)))
    return repairs


def _weights(**fields: Any) -> Change:
    return lambda case: replace(case, weights=replace(case.weights, **fields))


def _site(**fields: Any) -> Change:
    return lambda case: replace(case, site=replace(case.site, **fields))


def _moved_pairs(case: Case, *, all_at_once: bool) -> list[Repair]:
    """The pairs of the rotary embedding moved in the tensors that have them: in all, or in some."""
    if case.position is None:
        return []
    width = case.position[0].shape[-1]
    there = [name for name in ("q", "q_bias", "k", "k_bias") if getattr(case.weights, name) is not None]
    sizes = [len(there)] if all_at_once else range(1, len(there))
    chosen = [names for size in sizes for names in itertools.combinations(there, size)]
    return [_moved(names, case.site.key_dim, width, apart) for names in chosen for apart in (True, False)]


def _moved(names: Sequence[str], key_dim: int, width: int, apart: bool) -> Repair:
    def move(rows: Tensor) -> Tensor:
        heads = rows.unflatten(0, (-1, key_dim))
        turned, rest = heads[:, :width], heads[:, width:]
        pairs = turned.unflatten(1, (-1, 2) if apart else (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat([pairs, rest], 1).flatten(0, 1)

    def change(case: Case) -> Case:
        return _weights(**{name: move(getattr(case.weights, name)) for name in names})(case)

    order = "2i and 2i + 1 moved to i and i + R/2" if apart else "i and i + R/2 moved to 2i and 2i + 1"
    return Repair(f"with numbers {order} in each head of {', '.join(names)}", change)


def _readings(case: Case) -> Iterator[Repair]:
    """The same rows of one fused matrix, given to q, k and v in another order."""
    site = case.site
    forms = list(itertools.product((False, True), itertools.permutations(PARTS)))
    # Another reading than the adapter's own would be right of a matrix that the module does not have.
    own = [form for form in forms if _is_parameter(_fuse(_parts(case, ""), form[1], form[0], site), case.attention)]
    for (by_group, order), (other_by_group, other) in itertools.product(own or forms, forms):
        if (by_group, order) == (other_by_group, other):
            continue
        words = (
            f"if the rows of the fused matrix were taken as {_form(other, other_by_group, site)} (weights(site) takes "
            f"them as {_form(order, by_group, site)})"
        )

        def change(
            case: Case,
            source: tuple[bool, tuple[str, ...]] = (by_group, order),
            target: tuple[bool, tuple[str, ...]] = (other_by_group, other),
        ) -> Case:
            new: dict[str, Any] = {}
            for ending in ("", "_bias"):
                parts = _parts(case, ending)
                if all(part is not None for part in parts.values()):
                    split = _split(_fuse(parts, source[1], source[0], site), target[1], target[0], site)
                    new |= {name + ending: rows for name, rows in split.items()}
            return _weights(**new)(case)

        yield Repair(words, change)


def _parts(case: Case, ending: str) -> dict[str, Any]:
    return {name: getattr(case.weights, name + ending) for name in PARTS}


def _is_parameter(rows: Tensor, attention: nn.Module) -> bool:
    same_shape = (one for one in attention.parameters() if one.shape == rows.shape)
    return any(torch.equal(one.to(rows), rows) for one in same_shape)


def _sizes(site: AttentionSite) -> dict[str, int]:
    """Rows of each part in one group."""
    shared = site.num_heads // site.num_key_value_heads
    return {"q": shared * site.key_dim, "k": site.key_dim, "v": site.value_dim}


def _fuse(parts: Mapping[str, Tensor], order: tuple[str, ...], by_group: bool, site: AttentionSite) -> Tensor:
    groups = site.num_key_value_heads if by_group else 1
    return torch.cat([parts[name].unflatten(0, (groups, -1)) for name in order], 1).flatten(0, 1)


def _split(fused: Tensor, order: tuple[str, ...], by_group: bool, site: AttentionSite) -> dict[str, Tensor]:
    groups = site.num_key_value_heads if by_group else 1
    sizes = [_sizes(site)[name] * site.num_key_value_heads // groups for name in order]
    split = fused.unflatten(0, (groups, -1)).split(sizes, dim=1)
    return {name: part.flatten(0, 1) for name, part in zip(order, split, strict=True)}


def _form(order: tuple[str, ...], by_group: bool, site: AttentionSite) -> str:
    if not by_group:
        return f"all of {order[0]}, then all of {order[1]}, then all of {order[2]}"
    names = {"q": f"its {site.num_heads // site.num_key_value_heads} of q", "k": "its k", "v": "its v"}
    return f"{', '.join(names[name] for name in order)}, for one key-value head after the other"


def _where(case: Case) -> str:
    """Which half of the computation is wrong; the first token attends to itself alone, so its output is its v."""
    site = case.site
    found_BQNV, expected_BQNV = (
        y_BQX.unflatten(-1, (site.num_heads, site.value_dim)) for y_BQX in (case.found(), case.expected())
    )
    limit = case.tolerance * float(expected_BQNV.abs().max().clamp_min(1e-6))
    order = _heads_of(found_BQNV, expected_BQNV, limit)
    if order is not None and order != list(range(site.num_heads)):
        return f"Heads 0, 1, ... of the module are heads {', '.join(map(str, order))} of weights(site)."
    if case.fits(1):
        return (
            "The first token, whose output is its own v, is right. So v is, and what is wrong is q or k, a bias or "
            "norm of theirs, scale, rope_theta, rope_style, window or softcap."
        )
    order = _heads_of(found_BQNV[:, :1], expected_BQNV[:, :1], limit)
    if order is not None:
        shared = site.num_heads // site.num_key_value_heads
        read = ", ".join(str(head // shared) for head in order)
        due = ", ".join(str(head // shared) for head in range(site.num_heads))
        return (
            "At the first token, whose output is its own v, query heads 0, 1, ... of the module read key-value heads "
            f"{read} of weights(site); expected {due}. Reorder the heads of q, k and v; where the module shares k and "
            "v in another way, set num_key_value_heads = num_heads at the site and give each query head its own rows."
        )
    return (
        "It is wrong from the first token on, whose output is its own v. So v is wrong, or v_bias, or which rows of a "
        "fused matrix are v's, or the output has a gate."
    )


def _heads_of(found_BQNV: Tensor, expected_BQNV: Tensor, limit: float) -> list[int] | None:
    """For each head of the module the first one of weights(site) that gives the same; None where some has none."""
    distance_NN = (found_BQNV.unsqueeze(3) - expected_BQNV.unsqueeze(2)).abs().amax((0, 1, 4))
    near_NN = distance_NN <= limit
    return near_NN.long().argmax(1).tolist() if bool(near_NN.any(1).all()) else None


def _forgotten(case: Case) -> str:
    """Names of the module's parameters that no tensor of its weights was made from."""
    known = torch.cat([tensor.detach().flatten() for tensor in case.weights.tensors().values()])
    parameters = case.attention.named_parameters()
    return ", ".join(name for name, one in parameters if not bool(torch.isin(one.detach(), known).all()))
