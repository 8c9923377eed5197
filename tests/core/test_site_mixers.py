"""`student.sites`: other mixers at some of the sites, from the recipe to the plan."""

from __future__ import annotations

from typing import Any

import pytest

from linearize.errors import RecipeError
from linearize.plan.check import check_draft
from linearize.plan.plan import Plan
from linearize.plugin.discovery import Plugins
from linearize.recipe.load import LoadedRecipe, draft_recipe, load_recipe
from linearize.recipe.site_ranges import parse_site_ranges, site_ranges

WINDOW = {"sites": "0-1", "mixer": {"type": "sliding_window", "window": 4}}


def plan_of(tables: dict[str, Any], plugins: Plugins, *overrides: str) -> Plan:
    return check_draft(draft_recipe(tables, overrides, plugins)).plan


def found(tables: dict[str, Any], plugins: Plugins, *overrides: str) -> list[tuple[str, str]]:
    """Path and code of every problem."""
    with pytest.raises(RecipeError) as caught:
        plan_of(tables, plugins, *overrides)
    return [(problem.path, problem.code) for problem in caught.value.problems]


def with_sites(tables: dict[str, Any], *entries: dict[str, Any]) -> dict[str, Any]:
    tables["student"]["sites"] = list(entries)
    return tables


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0-2, 5", [0, 1, 2, 5]), (" 3 - 4 ,1", [3, 4, 1]), ("7-7", [7])]
)
def test_ranges_are_read_as_people_write_them(text: str, numbers: list[int]) -> None:
    assert parse_site_ranges(text) == numbers
    assert parse_site_ranges(site_ranges(numbers)) == sorted(numbers)


@pytest.mark.parametrize("text", ["", "a", "2-1", "1,,2", "-1", "1-2-3", "0.5"])
def test_a_text_that_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected sites such as '0-2, 5'"):
        parse_site_ranges(text)


def mixer_of(loaded: LoadedRecipe, number: int) -> dict[str, Any]:
    return loaded.components[f"student.sites.{number}.mixer"].table()


def test_keys_are_laid_over_the_mixer_and_another_type_takes_none_of_them(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    tables["student"]["mixer"] = {"type": "gla", "conv_width": 3, "rope": False}
    entries = {"sites": [0], "mixer": {"rope": True}}, {"sites": [1], "mixer": {"type": "retnet"}}
    loaded = load_recipe(with_sites(tables, *entries), [], plugins)
    assert (mixer_of(loaded, 0)["type"], mixer_of(loaded, 0)["conv_width"], mixer_of(loaded, 0)["rope"]) == (
        "gla", 3, True,
    )  # fmt: skip
    default = load_recipe(tables | {"student": {"mixer": {"type": "retnet"}}}, [], plugins)
    assert mixer_of(loaded, 1) == default.components["student.mixer"].table()


def test_a_resolved_recipe_reads_back_as_itself(tables: dict[str, Any], plugins: Plugins) -> None:
    loaded = load_recipe(with_sites(tables, WINDOW), ["student.sites.0.mixer.window=6"], plugins)
    assert loaded.tables()["student"]["sites"][0]["sites"] == [0, 1]
    assert loaded.tables()["student"]["sites"][0]["mixer"]["window"] == 6
    assert load_recipe(loaded.tables(), [], plugins).tables() == loaded.tables()


def test_a_recipe_without_other_mixers_is_written_as_before_they_existed(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    assert load_recipe(tables, [], plugins).tables()["student"].keys() == {"mixer", "layout", "seeder"}


def test_the_plan_has_each_kind_of_mixer_with_its_sites(tables: dict[str, Any], plugins: Plugins) -> None:
    plain = plan_of(tables, plugins)
    plan = plan_of(with_sites(tables, WINDOW), plugins)
    window, mamba2 = plan.mixers
    last = len(plan.sites) - 1
    assert (window.component.spec.name, window.sites) == ("sliding_window", (0, 1))
    assert (mamba2.component.spec.name, mamba2.sites) == ("mamba2", tuple(range(2, last + 1)))
    [kind] = plain.mixers
    assert plan.mixer_parameters == 2 * window.num_parameters + (last - 1) * kind.num_parameters
    assert plan.state_bytes == 2 * window.state_bytes + (last - 1) * kind.state_bytes
    assert plan.stages[0].trained[0] != plan.stages[0].trained[2] == plain.stages[0].trained[0]


def test_a_site_whose_mixer_has_none_of_a_stages_roles_sits_it_out(tables: dict[str, Any], plugins: Plugins) -> None:
    plan = plan_of(with_sites(tables, WINDOW), plugins, 'stages.align.train=["decay"]')
    assert plan.stages[0].sites == tuple(range(2, len(plan.sites)))
    assert plan.stages[1].sites == tuple(range(len(plan.sites)))


def test_a_role_that_no_mixer_has_is_a_problem(tables: dict[str, Any], plugins: Plugins) -> None:
    assert found(with_sites(tables, WINDOW), plugins, 'stages.align.train=["decay", "rank"]') == [
        ("stages.align.train", "value_error")
    ]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"sites": [77], "mixer": {"type": "gla"}}], ("student.sites.0.sites", "unknown_site")),
        ([{"sites": "5-2", "mixer": {"type": "gla"}}], ("student.sites.0.sites", "value_error")),
        ([{"sites": [], "mixer": {"type": "gla"}}], ("student.sites.0.sites", "too_short")),
        ([WINDOW, {"sites": [1], "mixer": {"type": "gla"}}], ("student.sites", "value_error")),
        ([WINDOW, {"sites": [2], "mixer": {"type": "glaa"}}], ("student.sites.1.mixer.type", "unknown_name")),
        ([{"sites": [2], "mixer": {"conv_widht": 3}}], ("student.sites.0.mixer.conv_widht", "unknown_key")),
        ([{"sites": [2], "mixr": {}, "mixer": {}}], ("student.sites.0.mixr", "unknown_key")),
        ([{"sites": [2]}], ("student.sites.0.mixer", "missing")),
    ],
)
def test_what_is_wrong_with_an_entry_is_told_once_by_its_path(
    tables: dict[str, Any], plugins: Plugins, entries: list[dict[str, Any]], problem: tuple[str, str]
) -> None:
    assert found(with_sites(tables, *entries), plugins) == [problem]


def test_a_wrong_option_of_the_mixer_is_not_told_again_for_the_sites_that_inherit_it(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    tables["student"]["mixer"]["conv_width"] = "many"
    entry = {"sites": [0], "mixer": {"rope": True}}
    assert found(with_sites(tables, entry), plugins) == [("student.mixer.conv_width", "int_parsing")]


def test_an_entry_whose_sites_keep_their_attention_is_a_problem(tables: dict[str, Any], plugins: Plugins) -> None:
    keep = "student.layout={ type = 'keep', sites = '0-1' }"
    assert found(with_sites(tables, WINDOW), plugins, keep) == [("student.sites.0.sites", "unused")]
    assert plan_of(tables, plugins, keep, "stages.align.sites=all").stages[0].trained[0]
