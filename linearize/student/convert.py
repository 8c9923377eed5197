"""Putting mixers into a teacher, choosing the route, and letting the teacher go at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from linearize.protocols import AttentionSite
from linearize.student.site import LinearizedAttention, Observer
from linearize.student.site import linearized_sites as linearized_sites

_SITES = "linearize_sites"


def convert(model: nn.Module, sites: Sequence[AttentionSite], mixers: Mapping[int, nn.Module]) -> None:
    """Puts a ``LinearizedAttention`` into every site of ``model`` and freezes all that came from the teacher.

    Args:
        mixers: site index -> mixer, as ``build_mixer`` makes them. Sites without one keep their attention; the others
            are linear until ``set_linear`` says otherwise.

    Raises:
        ValueError: a mixer for a site that is not listed, or a site that the model lacks; nothing is changed then.
    """
    # These import transformers' models, which who only plans a stage does without.
    from linearize.student.entrance import watch
    from linearize.student.generation import generate_from_states

    unknown = sorted(set(mixers) - {site.index for site in sites})
    if unknown:
        raise ValueError(
            f"mixers for sites {unknown}, but the model has {len(sites)} sites {_listed(s.index for s in sites)}"
        )
    slots = [_slot(model, site, mixers.get(site.index)) for site in sites]
    model.requires_grad_(False)
    for slot in slots:
        slot.config = getattr(model, "config", None)
        if slot.mixer is not None:
            slot.mixer.requires_grad_(True)
        replace_module(model, slot.site.path, slot)
    setattr(model, _SITES, tuple(sites))
    watch(model, sites, slots)
    generate_from_states(model)


def converted_sites(model: nn.Module) -> tuple[AttentionSite, ...]:
    """The sites that ``convert`` was given, also those whose attention stands in its old place again.

    Raises:
        ValueError: the model was never converted.
    """
    sites: tuple[AttentionSite, ...] | None = getattr(model, _SITES, None)
    if sites is None:
        raise ValueError(
            f"this {type(model).__name__} is not a student: linearize.student.convert.convert was not called on it"
        )
    return sites


def set_linear(model: nn.Module, indices: Collection[int]) -> None:
    """The student route runs the mixer at these sites and the attention at all others.

    Raises:
        ValueError: a site is named that has no mixer, or one is left out whose attention was released.
    """
    slots = {slot.site.index: slot for slot in linearized_sites(model)}
    without_mixer = sorted(index for index in indices if index not in slots or slots[index].mixer is None)
    if without_mixer:
        with_mixer = [index for index, slot in slots.items() if slot.mixer is not None]
        raise ValueError(f"sites {without_mixer} were to be linear, but mixers exist at sites {_listed(with_mixer)}")
    without_attention = sorted(i for i, slot in slots.items() if i not in indices and slot.attention is None)
    if without_attention:
        raise ValueError(
            f"sites {without_attention} were to keep attention, but theirs was released; they can only be linear"
        )
    for index, slot in slots.items():
        slot.linear = index in indices


@contextmanager
def teacher_route(model: nn.Module) -> Iterator[None]:
    """Inside, every site runs the teacher's attention: the model is the unconverted teacher, bit for bit.

    Raises:
        RuntimeError: the teacher was released.
    """
    slots = linearized_sites(model)
    released = [slot.site.index for slot in slots if slot.attention is None]
    if released:
        raise RuntimeError(f"the teacher route needs the attention of sites {_listed(released)}, which was released")
    before = [slot.runs_teacher for slot in slots]
    for slot in slots:
        slot.runs_teacher = True
    try:
        yield
    finally:
        for slot, value in zip(slots, before, strict=True):
            slot.runs_teacher = value


@contextmanager
def observe(model: nn.Module, callback: Observer, indices: Collection[int]) -> Iterator[None]:
    """The teacher route, with ``callback(capture, mixer)`` at the sites in ``indices``, in execution order.

    Raises:
        ValueError: a site is named that has no mixer.
        RuntimeError: the teacher was released.
    """
    slots = {slot.site.index: slot for slot in linearized_sites(model) if slot.mixer is not None}
    unknown = sorted(set(indices) - set(slots))
    if unknown:
        raise ValueError(f"sites {unknown} were to be observed, but mixers exist at sites {_listed(slots)}")
    before = {index: slots[index].observer for index in indices}
    with teacher_route(model):
        for index in indices:
            slots[index].observer = callback
        try:
            yield
        finally:
            for index, observer in before.items():
                slots[index].observer = observer


def release_teacher(model: nn.Module) -> None:
    """Drops what the student does not run: the attention of linear sites, the mixers of the others.

    Afterwards the modules are those of a saved student: a kept site is the teacher's attention under its own names
    again, a linear site has ``mixer`` and ``o_proj``.
    """
    for slot in linearized_sites(model):
        if slot.linear:
            slot.attention = None
        else:
            assert slot.attention is not None  # set_linear refuses this
            replace_module(model, slot.site.path, slot.attention)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts ``module`` at the dotted ``path`` of ``model``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _slot(model: nn.Module, site: AttentionSite, mixer: nn.Module | None) -> LinearizedAttention:
    try:
        attention = model.get_submodule(site.path)
        o_proj = attention.get_submodule(site.output_projection)
    except AttributeError as error:
        raise ValueError(
            f"site {site.index} is said to be at {site.path} with projection '{site.output_projection}', "
            f"but {type(model).__name__} does not have it: {error}"
        ) from error
    if isinstance(attention, LinearizedAttention):
        raise ValueError(f"site {site.index} ({site.path}) is converted already; convert a freshly loaded teacher")
    return LinearizedAttention(site, attention, mixer, o_proj)


def _listed(indices: Collection[int] | Iterator[int]) -> str:
    return ", ".join(str(index) for index in sorted(indices)) or "none"
