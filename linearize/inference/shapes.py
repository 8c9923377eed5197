"""Models of a named shape with random weights, whose times and memory are those of trained ones.

A teacher plug-in offers shapes in its spec, each a folder that holds a configuration alone.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from linearize.errors import PluginError, RecipeError, RunError, UnknownNameError
from linearize.inference.subjects import TEACHER, Subject, unused_name
from linearize.inference.targets import resolve_teacher
from linearize.plan.check import checked_indices
from linearize.plan.mixers import group_sites
from linearize.plugin.components import ResolvedComponent, read_options
from linearize.plugin.discovery import Plugins
from linearize.plugin.problems import describe_validation
from linearize.plugin.specs import LayoutSpec, MixerSpec, Spec, TeacherSpec
from linearize.protocols import AttentionSite
from linearize.wording import counted

NO_MIXER = "none"
LINEAR, HYBRID = "linear", "hybrid"
LAYOUTS = ("all", '{ type = "every", keep = 4, position = "last" }')
"""Of the students of a shape where nobody says others: the paper's linear one, and its hybrid with the last of four."""


@dataclass(frozen=True, slots=True)
class ShapeOptions:
    """Models of a named shape: a teacher, and a student for each layout.

    Attributes:
        name: as a plug-in's TeacherSpec names it.
        mixer: a type, a table such as '{ type = "gla", rope = false }', or "none" for the teacher alone.
        layouts: types, or tables.
        backend, conv_backend: options of the mixer; "" leaves them as they are.
    """

    name: str
    mixer: str = ""
    layouts: Sequence[str] = LAYOUTS
    backend: str = ""
    conv_backend: str = ""


def shape_subjects(shape: ShapeOptions, plugins: Plugins, *, device: str, dtype: str) -> list[Subject]:
    """The models of a shape, the teacher first; checks all that can be known without a weight.

    Raises:
        LinearizeError: there is no such shape, mixer or layout, or one does not fit.
    """
    teacher = find_shape(shape.name, plugins)
    with teacher.guarded():
        adapter = teacher.build()
        sites = list(adapter.sites())
    if not hasattr(adapter, "random_model"):
        raise PluginError(f"{teacher.title} offers shapes, but its adapter has no random_model to make models of them")
    subjects = [Subject(TEACHER, f"{shape.name}, random weights", "", {"shape": shape.name}, _loader(teacher))]
    if not shape.mixer:
        types = ", ".join(spec.name for spec in plugins.registry.all(MixerSpec))
        raise RunError(
            f"shape '{shape.name}' has no students of its own: say --mixer TYPE (installed: {types}), or --mixer "
            f"{NO_MIXER} for the teacher alone"
        )
    if shape.mixer == NO_MIXER:
        return subjects
    chosen = {name: value for name in ("backend", "conv_backend") if (value := getattr(shape, name))}
    mixer = _component(MixerSpec, shape.mixer, plugins, chosen)
    for text in shape.layouts:
        layout = _component(LayoutSpec, text, plugins)
        try:
            with layout.guarded():
                linear = checked_indices(layout.build(), layout, sites)
            with mixer.guarded():
                group_sites([site for site in sites if site.index in linear], mixer, device=device, dtype=dtype)
        except ValueError as error:
            raise RunError(f"--mixer {shape.mixer} --layout {text}: {error}") from None
        kept = len(sites) - len(linear)
        what = f"{mixer.spec.name} at {counted(len(linear), 'site')}, attention kept at {kept} of {len(sites)}"
        name = unused_name(HYBRID if kept else LINEAR, subjects)
        identity = {"shape": shape.name, "mixer": mixer.table(), "linear": list(linear)}
        subjects.append(Subject(name, what, TEACHER, identity, _loader(teacher, mixer, linear)))
    return subjects


def find_shape(name: str, plugins: Plugins) -> ResolvedComponent:
    """The teacher of a shape; its checkpoint is a folder without weights.

    Raises:
        UnknownNameError: no installed plug-in offers it; lists those there are.
        PluginError: the folder that the plug-in names holds no configuration.
    """
    shapes = {shape: spec for spec in plugins.registry.all(TeacherSpec) for shape in spec.shapes}
    if name not in shapes:
        raise UnknownNameError("shape", name, shapes, plugins.failures_hint())
    spec = shapes[name]
    package, _, path = spec.shapes[name].partition(":")
    folder = Path(str(importlib.resources.files(package))) / path
    if not (folder / "config.json").is_file():
        raise PluginError(
            f"teacher '{spec.name}' names {spec.shapes[name]} as shape '{name}', but {folder} holds no config.json"
        )
    return resolve_teacher(spec.name, {"checkpoint": str(folder)}, plugins, f"shape '{name}'")


def _component(
    kind: type[Spec], text: str, plugins: Plugins, chosen: dict[str, Any] | None = None
) -> ResolvedComponent:
    """A mixer or layout as it is typed: its type, or a TOML table."""
    asked = f"--{kind.kind} {text}"
    table: dict[str, Any] = {"type": text}
    if text.lstrip().startswith("{"):
        try:
            table = tomllib.loads(f"table = {text}")["table"]
        except tomllib.TOMLDecodeError as error:
            raise RunError(f"{asked}: expected a type, or a TOML table with one; {error}") from None
    options = {**{key: value for key, value in table.items() if key != "type"}, **(chosen or {})}
    spec = plugins.registry.get(kind, str(table.get("type", "")), plugins.failures_hint())
    model = spec.config_class()
    try:
        return ResolvedComponent(spec, read_options(model, options, plugins), plugins.registry.owner(spec))
    except ValidationError as error:
        raise RecipeError(asked, describe_validation(error, model)) from None


def _loader(teacher: ResolvedComponent, mixer: ResolvedComponent | None = None, linear: Sequence[int] = ()) -> Any:
    def load(dtype: Any, device: Any) -> Any:
        import torch

        torch.manual_seed(0)
        with teacher.guarded():
            adapter = teacher.build()
            model = adapter.random_model(dtype=dtype, device=device).eval().requires_grad_(False)
        if mixer is not None:
            _linearize(model, adapter.sites(), mixer, linear, dtype, device)
        return model.requires_grad_(False)

    return load


def _linearize(
    model: Any, sites: Sequence[AttentionSite], mixer: ResolvedComponent, linear: Sequence[int], dtype: Any, device: Any
) -> None:
    """Puts new mixers into a model, in the dtypes of a student that was loaded."""
    import torch

    from linearize.student.consistency import fp32_parameters
    from linearize.student.convert import convert, release_teacher, set_linear
    from linearize.student.mixers import build_mixer

    generator = torch.Generator().manual_seed(1)
    made: dict[int, Any] = {}
    for site in sites:
        if site.index in linear:
            new: Any = build_mixer(mixer.spec, mixer.config, site)
            new.initialize("scratch", generator)
            precise = set(fp32_parameters(new))
            new.to(device=device)
            for name, parameter in new.named_parameters():
                parameter.data = parameter.data.to(torch.float32 if name in precise else dtype)
            made[site.index] = new
    convert(model, sites, made)
    set_linear(model, made)
    release_teacher(model)
