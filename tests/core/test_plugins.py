"""Finding and loading plug-ins."""

from __future__ import annotations

import json
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, python

from linearize.errors import PluginError
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import LayoutSpec, MixerSpec

HEAVY = ("torch", "transformers", "accelerate", "fla", "mamba_ssm", "triton", "PIL", "matplotlib")


class Loader:
    """An entry point that gives what it was told to."""

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def load(self) -> Any:
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


class Good:
    @hookimpl
    def linearize_register(self, register: Register) -> None:
        register(MixerSpec(name="retention", build="no.such:Thing", source="https://example.org"))


class HalfBroken:
    @hookimpl
    def linearize_register(self, register: Register) -> None:
        register(MixerSpec(name="half", build="no.such:Thing", source="https://example.org"))
        raise RuntimeError("out of luck")


class Misspelt:
    @hookimpl
    def linearize_regster(self, register: Register) -> None:
        raise AssertionError("never called")


class WrongArgument:
    @hookimpl
    def linearize_register(self, registry: Register) -> None:
        raise AssertionError("never called")


def load(plugin: Any, name: str = "stranger") -> Plugins:
    plugins = Plugins()
    plugins.load(name, Loader(plugin), "somewhere", "1.0")
    return plugins


def test_a_plugin_brings_its_components_with_where_they_are_from() -> None:
    record = load(Good()).records[-1]
    assert (record.name, record.origin, record.version, record.failure) == ("stranger", "somewhere", "1.0", "")
    assert [spec.name for spec in record.specs] == ["retention"]


def test_a_plugin_that_cannot_be_imported_is_reported_and_stops_nothing() -> None:
    plugins = load(ImportError("no kernel library"))
    assert plugins.records[-1].failure == "ImportError: no kernel library"
    assert plugins.registry.get(LayoutSpec, "all")
    assert plugins.failures_hint() == "Plug-in 'stranger' did not load: ImportError: no kernel library."


def test_a_plugin_that_fails_half_way_leaves_nothing_behind() -> None:
    plugins = load(HalfBroken())
    assert plugins.records[-1].failure == "RuntimeError: out of luck"
    assert plugins.registry.all(MixerSpec) == []


def test_a_misspelt_hook_is_a_failure_that_names_it() -> None:
    assert "linearize_regster" in load(Misspelt()).records[-1].failure


def test_a_hook_with_an_unknown_argument_is_a_failure_that_names_it() -> None:
    assert "registry" in load(WrongArgument()).records[-1].failure


def test_a_plugin_after_a_broken_one_loads() -> None:
    plugins = load(Misspelt(), "broken")
    plugins.load("good", Loader(Good()), "somewhere", "1.0")
    assert plugins.records[-1].failure == ""
    assert plugins.registry.get(MixerSpec, "retention")


def test_two_plugins_with_one_name_for_a_component_are_both_named_and_the_first_stays() -> None:
    plugins = load(Good(), "first")
    plugins.load("second", Loader(Good()), "elsewhere", "2.0")
    assert "registered by both 'first' and 'second'" in plugins.records[-1].failure
    assert [spec.name for spec in plugins.registry.by_owner("first")] == ["retention"]


def test_a_plugin_added_in_code_raises_what_is_wrong_with_it() -> None:
    with pytest.raises(PluginError, match="plug-in 'mine': unknown hook 'linearize_regster'"):
        Plugins().add(Misspelt(), name="mine")


def test_a_module_without_a_hook_brings_nothing() -> None:
    record = load(types.ModuleType("empty")).records[-1]
    assert (record.specs, record.failure) == ((), "")


def test_disabled_plugins_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEARIZE_DISABLED_PLUGINS", "mamba2, glance")
    names = {record.name for record in Plugins.discover().records}
    assert not names & {"mamba2", "glance"}
    assert {"core", "hovle", "mmmamba"} <= names


def test_every_plugin_of_the_repository_loads(plugins: Plugins) -> None:
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["linearize"]
    failures = {record.name: record.failure for record in plugins.records}
    assert {name: failures.get(name) for name in own} == dict.fromkeys(own, "")


def test_listing_plugins_in_a_checkout_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['linearize', 'plugins', '--json']\n"
        "from linearize.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stderr == "[]\n"
    listed = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert {"kind": "mixer", "name": "mamba2"}.items() <= listed["mamba2"]["components"][0].items()
