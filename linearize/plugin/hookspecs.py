"""The whole extension surface: the questions that linearize puts to every installed plug-in."""

from __future__ import annotations

from typing import Protocol

import pluggy

from linearize.plugin.specs import Spec

PROJECT = "linearize"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """Takes one spec; its class says what kind of component it describes."""

    def __call__(self, spec: Spec) -> None:
        """Registers ``spec``; raises PluginError where that cannot be."""
        ...


@hookspec
def linearize_register(register: Register) -> None:
    """Call ``register(spec)`` once for each component that the plug-in adds."""
