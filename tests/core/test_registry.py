"""Names to components."""

from __future__ import annotations

import dataclasses

import pytest

from linearize.errors import PluginError, UnknownNameError
from linearize.plugin.registry import Registry
from linearize.plugin.specs import LayoutSpec, MixerSpec, Spec, load_target

SOURCE = "https://example.org/paper"
MAMBA2 = MixerSpec(name="mamba2", build="no.such:Thing", source=SOURCE)


def test_a_registered_spec_comes_back_by_kind_and_name() -> None:
    registry = Registry()
    registry.registrar("one")(MAMBA2)
    assert registry.get(MixerSpec, "mamba2") is MAMBA2


def test_one_name_may_stand_for_components_of_two_kinds() -> None:
    registry = Registry()
    register = registry.registrar("one")
    layout = LayoutSpec(name="mamba2", build="no.such:Thing", source=SOURCE)
    register(MAMBA2)
    register(layout)
    assert registry.by_owner("one") == [MAMBA2, layout]


def test_a_name_that_is_taken_names_both_plugins_and_the_way_out() -> None:
    registry = Registry()
    registry.registrar("one")(MAMBA2)
    message = (
        r"mixer 'mamba2' is registered by both 'one' and 'rival'; disable one with LINEARIZE_DISABLED_PLUGINS=rival"
    )
    with pytest.raises(PluginError, match=message):
        registry.registrar("rival")(MAMBA2)


@pytest.mark.parametrize("name", ["Mamba2", "mamba-2", "mamba 2", ""])
def test_a_name_that_is_no_lower_snake_case_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match=f"registered mixer '{name}'; names are lower_snake_case"):
        Registry().registrar("one")(dataclasses.replace(MAMBA2, name=name))


def test_something_that_is_no_spec_of_a_known_kind_is_refused() -> None:
    with pytest.raises(PluginError, match=r"plug-in 'one' registered .*; expected one of TeacherSpec, "):
        Registry().registrar("one")(Spec(name="thing", build="a:b", source=SOURCE))


def test_an_unknown_name_lists_what_there_is_and_the_nearest() -> None:
    registry = Registry()
    registry.registrar("one")(MAMBA2)
    with pytest.raises(UnknownNameError, match=r"unknown mixer 'manba2'. Did you mean 'mamba2'\? Installed: mamba2.$"):
        registry.get(MixerSpec, "manba2")
    with pytest.raises(UnknownNameError, match=r"unknown mixer 'x'. Installed: mamba2. Plug-in 'y' did not load.$"):
        registry.get(MixerSpec, "x", "Plug-in 'y' did not load.")


def test_what_an_owner_registered_can_be_taken_back_and_registered_again() -> None:
    registry = Registry()
    registry.registrar("one")(MAMBA2)
    registry.remove_owner("one")
    assert registry.all(MixerSpec) == []
    registry.registrar("two")(MAMBA2)
    assert registry.by_owner("two") == [MAMBA2]


def test_a_target_that_cannot_be_imported_says_who_needs_it_and_why() -> None:
    with pytest.raises(
        PluginError, match=r"mixer 'mamba2' needs no.such:Thing, whose import failed: ModuleNotFoundError"
    ):
        MAMBA2.builder()
    with pytest.raises(PluginError, match=r"it needs json:nothing, but module json has no 'nothing'"):
        load_target("json:nothing", "it")


def test_a_config_that_is_no_config_model_is_refused_by_name() -> None:
    spec = dataclasses.replace(MAMBA2, config="json:JSONDecoder")
    with pytest.raises(
        PluginError, match=r"mixer 'mamba2' names json:JSONDecoder as its config; expected a linearize Config"
    ):
        spec.config_class()
