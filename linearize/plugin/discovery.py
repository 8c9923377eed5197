"""Finding and loading plug-ins. A broken one is reported, and fatal only to a recipe that needs what it would bring."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pluggy

from linearize.errors import PluginError
from linearize.plugin import builtin, hookspecs
from linearize.plugin.kernels import announce, note_installed
from linearize.plugin.registry import Registry
from linearize.plugin.specs import KernelSpec, Spec

ENTRY_POINT_GROUP = "linearize"
DISABLE_VARIABLE = "LINEARIZE_DISABLED_PLUGINS"
IN_TREE_FOLDERS = ("teachers", "students", "plugins")


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plug-in as ``linearize plugins`` shows it. ``failure`` is empty when it loaded."""

    name: str
    origin: str
    version: str
    specs: tuple[Spec, ...]
    failure: str = ""


class _Source(Protocol):
    """Something that imports to a plug-in module."""

    def load(self) -> Any: ...


class _Folder:
    """An in-tree plug-in package of a checkout that was never installed."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def load(self) -> ModuleType:
        if importlib.util.find_spec(self.package.name) is None:
            sys.path.append(str(self.package.parent))
        return importlib.import_module(self.package.name)


class Plugins:
    """The plug-ins of one run and the registry that they filled; tests make their own."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.records: list[PluginRecord] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.add(builtin, name="core", origin="linearize")

    @classmethod
    def discover(cls) -> Plugins:
        """Loads every installed plug-in (entry-point group ``linearize``), and in a checkout the in-tree ones too.

        Plug-ins named in LINEARIZE_DISABLED_PLUGINS (comma-separated) are left out.
        """
        plugins = cls()
        disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
        found: dict[str, tuple[_Source, str, str]] = {}
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
            dist = point.dist
            found.setdefault(point.name, (point, dist.name if dist else point.value, dist.version if dist else ""))
        for package in _in_tree_packages():
            found.setdefault(package.name.removeprefix("linearize_"), (_Folder(package), "checkout", ""))
        for name, (source, origin, version) in found.items():
            if name not in disabled:
                plugins.load(name, source, origin, version)
        note_installed()
        return plugins

    def load(self, name: str, source: _Source, origin: str, version: str) -> None:
        """Imports one plug-in and registers what it brings; a failure is kept in its record."""
        try:
            plugin = source.load()
            self.add(plugin, name=name, origin=origin, version=version)
        except Exception as error:
            self.registry.remove_owner(name)
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            self.records.append(PluginRecord(name, origin, version, (), text))

    def add(self, plugin: object, *, name: str, origin: str = "added in code", version: str = "") -> None:
        """Registers one plug-in object under ``name``.

        Raises:
            PluginError: it implements a hook that does not exist, or registers something that cannot be.
        """
        self._manager.register(plugin, name=name)
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plug-in '{name}': {error}") from error
        others = [known for known in self._manager.get_plugins() if known is not plugin]
        self._manager.subset_hook_caller("linearize_register", others)(register=self.registry.registrar(name))
        specs = tuple(self.registry.by_owner(name))
        announce(spec for spec in specs if isinstance(spec, KernelSpec))
        self.records.append(PluginRecord(name, origin, version, specs))

    def failures_hint(self) -> str:
        """A sentence about plug-ins that did not load, for messages about names that are missing."""
        failed = [record for record in self.records if record.failure]
        return "".join(f" Plug-in '{record.name}' did not load: {record.failure}." for record in failed).strip()


def _in_tree_packages() -> list[Path]:
    """Plug-in packages beside the ``linearize`` package of a checkout; none when linearize is installed as a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return []
    return [
        package
        for folder in IN_TREE_FOLDERS
        for package in sorted((root / folder).glob("linearize_*"))
        if (package / "__init__.py").is_file()
    ]
