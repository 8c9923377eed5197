"""Names to components: what every installed plug-in registered, and from where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from linearize.errors import PluginError, UnknownNameError
from linearize.plugin.specs import KINDS, Spec

AnySpec = TypeVar("AnySpec", bound=Spec)


class Registry:
    """The specs of one run, by kind and name, each with the plug-in that registered it."""

    def __init__(self) -> None:
        self._specs: dict[type[Spec], dict[str, Spec]] = {kind: {} for kind in KINDS}
        self._owners: dict[tuple[type[Spec], str], str] = {}

    def registrar(self, plugin: str) -> Callable[[Spec], None]:
        """The ``register`` callable that is handed to one plug-in.

        Raises:
            PluginError: (from the callable) not a spec, a name that is no lower_snake_case, or a name already taken.
        """

        def register(spec: Spec) -> None:
            kind = type(spec)
            if kind not in self._specs:
                raise PluginError(
                    f"plug-in '{plugin}' registered {spec!r}; expected one of {', '.join(k.__name__ for k in KINDS)}"
                )
            if not (spec.name.isidentifier() and spec.name == spec.name.lower()):
                raise PluginError(
                    f"plug-in '{plugin}' registered {kind.kind} '{spec.name}'; names are lower_snake_case"
                )
            owner = self._owners.get((kind, spec.name))
            if owner is not None:
                raise PluginError(
                    f"{kind.kind} '{spec.name}' is registered by both '{owner}' and '{plugin}'; "
                    f"disable one with LINEARIZE_DISABLED_PLUGINS={plugin}"
                )
            self._specs[kind][spec.name] = spec
            self._owners[kind, spec.name] = plugin

        return register

    def get(self, kind: type[AnySpec], name: str, hint: str = "") -> AnySpec:
        """The spec of that kind and name.

        Raises:
            UnknownNameError: nobody registered it; the message lists who did what and the nearest name.
        """
        spec = self._specs[kind].get(name)
        if spec is None:
            raise UnknownNameError(kind.kind, name, self._specs[kind], hint)
        assert isinstance(spec, kind)
        return spec

    def all(self, kind: type[AnySpec]) -> list[AnySpec]:
        """Every spec of that kind, by name."""
        return [spec for _, spec in sorted(self._specs[kind].items()) if isinstance(spec, kind)]

    def by_owner(self, plugin: str) -> list[Spec]:
        """What one plug-in registered, in the order of kinds and names."""
        return [
            spec
            for kind in KINDS
            for name, spec in sorted(self._specs[kind].items())
            if self._owners[kind, name] == plugin
        ]

    def owner(self, spec: Spec) -> str:
        """Name of the plug-in that registered a spec; "" of one that nobody did."""
        return self._owners.get((type(spec), spec.name), "")

    def remove_owner(self, plugin: str) -> None:
        """Takes back all that one plug-in registered: half a plug-in is worse than none."""
        for kind, name in [key for key, owner in self._owners.items() if owner == plugin]:
            del self._specs[kind][name], self._owners[kind, name]
