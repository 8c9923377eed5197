"""A plug-in that is added in code, not installed, is seen wherever components are looked up."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from checkout import CORE

import linearize
from linearize.api import check
from linearize.errors import CheckpointError, RecipeError, UnknownNameError
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import LayoutSpec, MixerSpec, TeacherSpec

TAKE_PLUGINS = {"api.py", "cli/app.py", "comparison/cells.py", "scaffold/__init__.py", "student"}
"""What is called from outside: discovers plug-ins where none are handed to it."""
OWN_PROCESS = {"comparison/worker.py", "comparison/decoding.py", "recipe/reference.py", "testing"}
"""Runs in a process of its own, or in a test of a plug-in."""
WITHOUT_CONTEXT = {"plugin/components.py", "plugin/kernels.py"}
"""Options that are made in code, outside any recipe; kernels, which are the process's."""


class Mine:
    @hookimpl
    def linearize_register(self, register: Register) -> None:
        register(LayoutSpec(name="first_only", build="code_of_mine:FirstOnly", source="https://example.org"))
        register(MixerSpec(
            name="my_mixer", build="linearize_mamba2.mixer:Mamba2Mixer", config="linearize_mamba2.config:Mamba2Config",
            source="https://example.org"))  # fmt: skip
        register(TeacherSpec(
            name="mine", build="linearize_hovle.adapter:HovleAdapter",
            config="linearize_hovle.config:HovleTeacherConfig", source="https://example.org"))  # fmt: skip


class FirstOnly:
    def __init__(self, config: object) -> None: ...
    def linear_sites(self, sites: Any) -> list[int]:
        return [0]


@pytest.fixture
def with_mine(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    module = types.ModuleType("code_of_mine")
    vars(module)["FirstOnly"] = FirstOnly
    monkeypatch.setitem(sys.modules, "code_of_mine", module)
    plugins = Plugins.discover()
    plugins.add(Mine(), name="mine")
    return plugins


def test_check_plans_with_a_layout_that_is_added_in_code(tables: dict[str, Any], with_mine: Plugins) -> None:
    tables["student"]["layout"] = {"type": "first_only"}
    checked = check(tables, plugins=with_mine)
    assert checked.plan.linear == (0,)
    assert checked.recipe.plugins is with_mine
    with pytest.raises(RecipeError):
        check(tables)


def test_a_teacher_that_is_added_in_code_loads(with_mine: Plugins) -> None:
    assert linearize.load_teacher("mine", "embedded", plugins=with_mine).adapter.sites()
    with pytest.raises(UnknownNameError):
        linearize.load_teacher("mine", "embedded")


def test_a_run_saves_a_mixer_that_is_added_in_code_and_the_student_loads_with_it(
    tables: dict[str, Any], with_mine: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables["teacher"] = {"type": "mine", "checkpoint": "embedded"}
    tables["student"] = {"mixer": {"type": "my_mixer"}, "layout": {"type": "first_only"}}
    tables["stages"] = [{**tables["stages"][0], "steps": 1, "batch_size": 1}]
    folder = linearize.run(tables, plugins=with_mine).folder / "student"
    assert linearize.load_student(folder, plugins=with_mine)
    with pytest.raises(CheckpointError, match="mixer 'my_mixer'"):
        linearize.load_student(folder)


def test_plugins_are_discovered_where_calls_enter_and_handed_on_from_there() -> None:
    callers = {
        str(path.relative_to(CORE)) for path in CORE.rglob("*.py") if "Plugins.discover(" in path.read_text("utf-8")
    }
    allowed = TAKE_PLUGINS | OWN_PROCESS | WITHOUT_CONTEXT
    assert {name for name in callers if name not in allowed and name.partition("/")[0] not in allowed} == set()
