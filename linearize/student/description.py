"""What a saved student's config.json says of it under ``linearize``: its sites, its mixers, what it was made from.

The classes here are the saved format, and nothing but that: what a field means never changes, a new field has a default
that says what its absence meant, and whatever an earlier version could not read raises ``FORMAT``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from torch import nn

from linearize._version import __version__
from linearize.errors import CheckpointError, PluginError, UnknownNameError
from linearize.plugin.components import component_types, read_options
from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols import AttentionSite, SiteNorm
from linearize.student.convert import converted_sites, linearized_sites
from linearize.student.mixers import build_mixer, mixer_origin

FORMAT = 2
"""1: without ``format``, ``dtype`` and ``float32``, and what sites say of clamps, masks and factors of positions."""


class NormEntry(Config):
    """The norm of a site's queries and keys, as :class:`linearize.protocols.SiteNorm` has it."""

    kind: Literal["rms", "layer"] = Field(description="root mean square, or layer norm")
    over: Literal["head", "heads", "all"] = Field(description="what is normalised together, and by which weight")
    has_bias: bool = Field(description="whether something is added")
    eps: float = Field(description="added to the mean square, or to the variance")


class SiteEntry(Config):
    """One attention site, as :class:`linearize.protocols.AttentionSite` has it."""

    index: NonNegativeInt = Field(description="number in execution order")
    path: str = Field(description="dotted path of the attention module")
    tower: str = Field(description="stack that the site belongs to")
    layer: NonNegativeInt = Field(description="index inside the tower")
    cache_index: NonNegativeInt = Field(description="slot in the cache")
    hidden_size: PositiveInt = Field(description="model width")
    num_heads: PositiveInt = Field(description="query heads")
    num_key_value_heads: PositiveInt = Field(description="key-value heads")
    key_dim: PositiveInt = Field(description="width of a query or key head")
    value_dim: PositiveInt = Field(description="width of a value head")
    output_projection: str = Field(default="o_proj", description="attribute that holds the output projection")
    num_layers: NonNegativeInt = Field(default=0, description="layers of the tower; 0: not known")
    cache_argument: str = Field(default="", exclude=True, description="keyword of the cache; not read or written now")
    has_rope: bool = Field(default=True, description="whether queries and keys are turned")
    rope_style: Literal["half", "interleaved"] = Field(default="half", description="which numbers turn together")
    qkv_bias: bool = Field(default=False, description="whether any of the q, k and v projections has a bias")
    qk_norm: NormEntry | None = Field(default=None, description="norm of queries and keys; null: none")
    v_norm_eps: float | None = Field(default=None, description="of the values' norm; null: none")
    qkv_clip: PositiveFloat | None = Field(default=None, description="what q, k and v are clamped to; null: nothing")
    scale: float | None = Field(default=None, description="factor on scores; null: 1/sqrt(key_dim)")
    window: PositiveInt | None = Field(default=None, description="sliding window in tokens; null: none")
    softcap: PositiveFloat | None = Field(default=None, description="soft cap of scores; null: none")
    own_mask: bool = Field(default=False, description="whether tokens see others than those before them")
    sharpens_from: NonNegativeInt | None = Field(
        default=None, description="first token whose query is multiplied by a factor of its position; null: none"
    )
    fully_described: bool = Field(default=True, description="whether the teacher's attention did nothing else")

    @classmethod
    def of(cls, site: AttentionSite) -> SiteEntry:
        """The entry of a site."""
        return cls.model_validate(dataclasses.asdict(site))

    def to_site(self) -> AttentionSite:
        """The site of an entry."""
        fields = dict(self)
        del fields["cache_argument"]
        if self.qk_norm is not None:
            fields["qk_norm"] = SiteNorm(**dict(self.qk_norm))
        return AttentionSite(**fields)


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

    format: PositiveInt = Field(default=1, description="version of this format")
    version: str = Field(description="the version of linearize that saved the student")
    base: str = Field(description="model_type of the base model")
    sites: tuple[SiteEntry, ...] = Field(description="every attention site of the base model, linear or kept")
    mixers: tuple[MixerEntry, ...] = Field(description="the linear sites; all other sites keep their attention")
    extra: dict[str, Any] = Field(description="what the saver added: the recipe, the teacher, results")
    dtype: str = Field(default="", description="of the weights, as torch calls it; empty: as config.json says")
    float32: tuple[str, ...] = Field(default=(), description="parameters that are float32 whatever the others are")

    def linear_sites(self) -> list[int]:
        """Indices of the linear sites, ascending."""
        return sorted(entry.site for entry in self.mixers)


def describe_student(
    model: nn.Module, base: str, extra: Mapping[str, Any], plugins: Plugins | None = None
) -> StudentDescription:
    """The description of a converted model as its student route runs now, without its dtypes.

    Args:
        plugins: where its mixers are registered; None: those that are installed.

    Raises:
        ValueError: the model is not converted, or a mixer was made without ``build_mixer``.
    """
    registrations = (plugins or Plugins.discover()).records
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
        format=FORMAT,
        version=__version__,
        base=base,
        sites=tuple(SiteEntry.of(site) for site in converted_sites(model)),
        mixers=tuple(entries),
        extra=dict(extra),
    )


def read_description(data: Any) -> StudentDescription:
    """The description in a configuration.

    Raises:
        CheckpointError: there is none, it is not one that this version of linearize can read, or it contradicts itself.
    """
    found = data.get("version") if isinstance(data, Mapping) else None
    version = data.get("format", 1) if isinstance(data, Mapping) else None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"the student is saved in format {version}, by linearize {found or 'unknown'}; this is {__version__}, "
            f"which reads formats up to {FORMAT}: update linearize"
        )
    try:
        description = StudentDescription.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(
            f"the configuration's 'linearize' entry does not describe a student (saved by linearize "
            f"{found or 'unknown'}, this is {__version__}): {error}"
        ) from error
    missing = set(description.linear_sites()) - {site.index for site in description.sites}
    if missing:
        raise CheckpointError(f"the configuration gives mixers to sites {sorted(missing)}, which it does not list")
    sites = description.sites
    for what, values in (
        ("two mixers to site", description.linear_sites()),
        ("two entries to site", [site.index for site in sites]),
        ("two sites the cache slot", [site.cache_index for site in sites]),
        ("two sites the module", [site.path for site in sites]),
    ):
        if twice := _twice(values):
            raise CheckpointError(
                f"the configuration gives {what} {twice[0]}, which has room for one; restore the config.json that was "
                "saved with the weights"
            )
    return description


def build_mixers(description: StudentDescription, plugins: Plugins | None = None) -> dict[int, nn.Module]:
    """The mixers by site, untrained.

    Args:
        plugins: where they are registered; None: those that are installed.

    Raises:
        CheckpointError: no plug-in has a mixer of that name, or its options have changed; names the plug-in that the
            student was saved with.
    """
    plugins = plugins or Plugins.discover()
    sites = {entry.index: entry.to_site() for entry in description.sites}
    mixers = {}
    for entry in description.mixers:
        try:
            spec = plugins.registry.get(MixerSpec, entry.type, plugins.failures_hint())
            options = read_options(spec.config_class(), entry.options, plugins)
            mixers[entry.site] = build_mixer(spec, options, sites[entry.site])
        except (PluginError, UnknownNameError, ValidationError) as error:
            raise _unbuildable(entry, error) from error
    return mixers


def _twice(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value in values[:number]]


def _unbuildable(entry: MixerEntry, error: Exception) -> CheckpointError:
    plugin = f"plug-in '{entry.plugin}'" if entry.plugin else "a plug-in that was added in code"
    return CheckpointError(
        f"site {entry.site} of this student runs mixer '{entry.type}' of {plugin}, which cannot be built here: {error} "
        "Install the plug-in in that version, then load again."
    )
