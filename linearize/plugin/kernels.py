"""The kernels of this process: those of every plug-in that was loaded, and of the installed ones.

A kernel is chosen deep inside a mixer, in whatever process runs it, so unlike other components kernels are not looked
up in the registry of a run. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from linearize.errors import PluginError
from linearize.plugin.specs import KernelSpec

_known: dict[tuple[str, str], KernelSpec] = {}
_state = {"generation": 0, "installed": False}


def announce(specs: Iterable[KernelSpec]) -> None:
    """Makes the kernels of a plug-in known to this process: all of them, or none where one is refused.

    Raises:
        PluginError: another one computes the same operation for the same backend; names both.
    """
    known = dict(_known)
    for spec in specs:
        other = known.setdefault((spec.operation, spec.backend), spec)
        if other != spec:
            raise PluginError(
                f"kernel '{spec.name}' computes '{spec.operation}' for backend '{spec.backend}', as kernel "
                f"'{other.name}' does; give it a backend name of its own"
            )
    if len(known) > len(_known):
        _known.update(known)
        _state["generation"] += 1


def withdraw(spec: KernelSpec) -> None:
    """Forgets a kernel."""
    if _known.pop((spec.operation, spec.backend), None) is not None:
        _state["generation"] += 1


def note_installed() -> None:
    """Says that the installed plug-ins were loaded."""
    _state["installed"] = True


def generation() -> int:
    """A number that grows with every change of the kernels known; loads the installed plug-ins first."""
    if not _state["installed"]:
        from linearize.plugin.discovery import Plugins

        Plugins.discover()
    return _state["generation"]


def registered_kernels() -> tuple[KernelSpec, ...]:
    """All of them, by operation and backend; loads the installed plug-ins first."""
    generation()
    return tuple(spec for _, spec in sorted(_known.items()))
