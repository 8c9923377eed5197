"""Every run holds its teacher against what the adapter says of it, before it trains.

The model reads one text. At each site the attention is computed again from ``sites()`` and ``weights()`` and compared
with what the module gives, one site at a time. In a model of lower precision a float32 copy of the module answers,
so that a difference is the adapter's and no rounding; where no copy runs so (a quantised module, FlashAttention), the
module's own answer has to be as near as the same computation comes in its dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from linearize.errors import PluginError
from linearize.proof.calls import SiteCall, watch
from linearize.proof.case import Case, make_case
from linearize.proof.diagnosis import explain
from linearize.proof.facts import disagreements
from linearize.protocols import AttentionSite, Batch, TeacherAdapter
from linearize.student.convert import replace_module

TOLERANCE = 1e-4
"""Of the largest value: float32 against float64 is some 1e-6, a wrong fact a thousand times more."""
ROUNDINGS = 8.0
"""How many times what the computation written out loses in the module's dtype the module may lose: it adds up in
another order, over the same terms."""
NEXT = (
    "A student would be built and seeded for another attention than this one, so nothing was trained. Mend the teacher "
    "plug-in, whose sites() or weights() says so (its author finds all of this with linearize.testing."
    "TeacherConformance); or, where no field can say what it does, let the site have fully_described = False and a "
    "caveat; or let these sites keep their attention with student.layout"
)


@torch.no_grad()
def prove_teacher(model: nn.Module, adapter: TeacherAdapter, sites: Sequence[AttentionSite], batch: Batch) -> None:
    """Passes a teacher whose attention at ``sites`` is what its adapter says; ``model`` is as ``load`` gave it.

    Sites that are not ``fully_described`` are passed by: the adapter's caveats say what they do besides.

    Args:
        batch: one text or several, on the model's device.

    Raises:
        PluginError: a site's attention differs; names the sites, and what would make the first of them right.
    """
    differing: dict[int, str] = {}
    hooks: list[Any] = []
    for site in (site for site in sites if site.fully_described):
        hooks += _prove_as_it_runs(model, adapter, site, differing)
    try:
        model(**batch.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if differing:
        first, *others = differing
        place = next(site.path for site in sites if site.index == first)
        more = f" So do sites {', '.join(map(str, others))}." if others else ""
        raise PluginError(
            f"site {first} ({place}) does not compute the attention that the teacher plug-in says: {differing[first]}"
            f"{more} {NEXT}"
        )


def _prove_as_it_runs(
    model: nn.Module, adapter: TeacherAdapter, site: AttentionSite, differing: dict[int, str]
) -> list[Any]:
    attention, call = model.get_submodule(site.path), SiteCall()
    hooks = watch(attention, site, call)

    def prove(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for hook in hooks:  # so that a copy of the module has none of them
            hook.remove()
        wrong = _difference(model, adapter, site, attention, call, explained=not differing)
        if wrong:
            differing[site.index] = wrong

    hooks.append(attention.register_forward_hook(prove))
    return hooks


def _difference(
    model: nn.Module,
    adapter: TeacherAdapter,
    site: AttentionSite,
    attention: nn.Module,
    call: SiteCall,
    explained: bool,
) -> str:
    """What is wrong at a site that just ran, a sentence or more; "" where all is right."""
    if len(call.projected) != 1:
        return (
            f"it called '{site.output_projection}' {len(call.projected)} times, once with the output of all heads was "
            "expected."
        )
    if site.has_rope and not isinstance(call.position, tuple):
        return "has_rope is True, but its decoder passes it no position_embeddings: set has_rope = False."
    dtype = torch.float32
    wide = attention if call.x_BTD.dtype in (torch.float32, torch.float64) else None
    if wide is None:
        wide = _in_float32(attention, call, site)
    if wide is None:
        wide, dtype = attention, call.x_BTD.dtype
    # Weights are read off what is compared, since an adapter may compute them, as those of norms.
    replace_module(model, site.path, wide)
    try:
        weights = adapter.weights(model, site)
    finally:
        replace_module(model, site.path, attention)
    differ = disagreements(weights, site)
    if differ:
        return f"the site has {'; '.join(differ)}."
    try:
        for row in range(len(call.x_BTD)):
            wrong = _row_difference(
                make_case(call, site, weights, wide, row=row, tolerance=0.0), dtype, explained=explained
            )
            if wrong:
                return wrong
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"it cannot be computed from what they say: {error}."
    return ""


def _row_difference(case: Case, dtype: torch.dtype, *, explained: bool) -> str:
    if len(case.queries_Q) == 0:
        return ""
    (furthest, largest), rounding = case.error(), case.rounding(dtype)
    limit = TOLERANCE + ROUNDINGS * rounding
    if furthest <= limit * max(largest, 1e-6):
        return ""
    found = (
        f"what its heads give is off by {furthest:.1e}, largest value {largest:.1e}, where rounding explains "
        f"{limit * largest:.1e}."
    )
    return f"{found} {explain(replace(case, tolerance=limit))}" if explained else found


def _in_float32(attention: nn.Module, call: SiteCall, site: AttentionSite) -> nn.Module | None:
    """A float32 copy that answered the same call, now in ``call``; None where there is no such copy."""
    wide = SiteCall()
    try:
        twin = copy.deepcopy(attention).float()
        hooks = watch(twin, site, wide)
        with torch.autocast(call.x_BTD.device.type, enabled=False):
            twin(*_widened(call.args), **_widened(call.kwargs))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever it is, the module's own answer is there
        return None
    for hook in hooks:
        hook.remove()
    if len(wide.projected) != 1:
        return None
    call.args, call.kwargs, call.projected = wide.args, wide.kwargs, wide.projected
    return twin


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _widened(one) for name, one in value.items()}
    return tuple(map(_widened, value)) if type(value) is tuple else value
