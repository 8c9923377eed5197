"""What a saved student's config.json says of it under ``linearize``: its sites, its mixers, what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError
from torch import nn

from linearize._version import __version__
from linearize.errors import CheckpointError, PluginError, UnknownNameError
from linearize.plugin.components import component_types, read_options
from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols import AttentionSite
from linearize.student.convert import converted_sites, linearized_sites
from linearize.student.mixers import build_mixer, mixer_origin


class MixerEntry(Config):
    """The mixer of one site."""

    site: int = Field(description="index of the site")
    type: str = Field(description="the mixer's registered name")
    options: dict[str, Any] = Field(description="the mixer's options")
    plugin: str = Field(
        description="the plug-in that registered it when the student was saved, and its version; then those of mixers "
        "that it contains"
    )


class StudentDescription(Config):
    """Everything that rebuilds a student's modules on its base model, without the teacher's adapter."""

    version: str = Field(description="the version of linearize that saved the student")
    base: str = Field(description="model_type of the base model")
    sites: tuple[AttentionSite, ...] = Field(description="every attention site of the base model, linear or kept")
    mixers: tuple[MixerEntry, ...] = Field(description="the linear sites; all other sites keep their attention")
    extra: dict[str, Any] = Field(description="what the saver added: the recipe, the teacher, results")

    def linear_sites(self) -> list[int]:
        """Indices of the linear sites, ascending."""
        return sorted(entry.site for entry in self.mixers)


def describe_student(model: nn.Module, base: str, extra: Mapping[str, Any]) -> StudentDescription:
    """The description of a converted model as its student route runs now.

    Raises:
        ValueError: the model is not converted, or a mixer was made without ``build_mixer``.
    """
    registrations = Plugins.discover().records
    owners = {spec.name: " ".join(part for part in (record.name, record.version) if part)
              for record in registrations for spec in record.specs if isinstance(spec, MixerSpec)}  # fmt: skip
    entries = []
    for slot in linearized_sites(model):
        if slot.linear and slot.mixer is not None:
            origin = mixer_origin(slot.mixer)
            types = component_types({"type": origin.name, **origin.options})
            plugin = ", ".join(dict.fromkeys(owners[name] for name in types if name in owners))
            entries.append(MixerEntry(site=slot.site.index, type=origin.name, options=origin.options, plugin=plugin))
    return StudentDescription(
        version=__version__, base=base, sites=converted_sites(model), mixers=tuple(entries), extra=dict(extra)
    )


def read_description(data: Any) -> StudentDescription:
    """The description in a configuration.

    Raises:
        CheckpointError: there is none, or it is not one that this version of linearize can read.
    """
    try:
        description = StudentDescription.model_validate(data)
    except ValidationError as error:
        found = data.get("version") if isinstance(data, Mapping) else None
        raise CheckpointError(
            f"the configuration's 'linearize' entry does not describe a student (saved by linearize "
            f"{found or 'unknown'}, this is {__version__}): {error}"
        ) from error
    missing = set(description.linear_sites()) - {site.index for site in description.sites}
    if missing:
        raise CheckpointError(f"the configuration gives mixers to sites {sorted(missing)}, which it does not list")
    return description


def build_mixers(description: StudentDescription) -> dict[int, nn.Module]:
    """The mixers by site, untrained, from the installed plug-ins.

    Raises:
        CheckpointError: no installed plug-in has a mixer of that name, or its options have changed; names the plug-in
            that the student was saved with.
    """
    plugins = Plugins.discover()
    sites = {site.index: site for site in description.sites}
    mixers = {}
    for entry in description.mixers:
        try:
            spec = plugins.registry.get(MixerSpec, entry.type, plugins.failures_hint())
            options = read_options(spec.config_class(), entry.options, plugins)
            mixers[entry.site] = build_mixer(spec, options, sites[entry.site])
        except (PluginError, UnknownNameError, ValidationError) as error:
            raise _unbuildable(entry, error) from error
    return mixers


def _unbuildable(entry: MixerEntry, error: Exception) -> CheckpointError:
    plugin = f"plug-in '{entry.plugin}'" if entry.plugin else "a plug-in that was added in code"
    return CheckpointError(
        f"site {entry.site} of this student runs mixer '{entry.type}' of {plugin}, which cannot be built here: {error} "
        "Install the plug-in in that version, then load again."
    )
