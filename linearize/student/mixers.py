"""Mixers that remember what they were made from, so that a saved student can say how to make them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from linearize.plugin.config import Config
from linearize.plugin.specs import Spec
from linearize.protocols import AttentionSite

_ORIGIN = "linearize_origin"


@dataclass(frozen=True, slots=True)
class MixerOrigin:
    """A mixer's registered name and its options as JSON values."""

    name: str
    options: dict[str, Any]


def build_mixer(spec: Spec, options: Config, site: AttentionSite) -> nn.Module:
    """The mixer that a MixerSpec describes, for one site, in eval mode; every mixer of a student is made here.

    Raises:
        PluginError: the plug-in's module cannot be imported.
    """
    mixer: nn.Module = spec.builder()(options, site)
    setattr(mixer, _ORIGIN, MixerOrigin(spec.name, options.model_dump(mode="json")))
    return mixer.eval()


def mixer_origin(mixer: nn.Module) -> MixerOrigin:
    """What ``mixer`` was made from.

    Raises:
        ValueError: it was not made by ``build_mixer``.
    """
    origin = getattr(mixer, _ORIGIN, None)
    if not isinstance(origin, MixerOrigin):
        raise ValueError(
            f"a {type(mixer).__name__} was made without build_mixer, so its name and options are unknown and it "
            "cannot be saved; make it with linearize.student.mixers.build_mixer"
        )
    return origin
