"""What is found wrong with a recipe once its teacher's configuration is known, and what a right one would do."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from linearize.errors import Problem, RecipeError
from linearize.plan.check import check_draft
from linearize.plan.plan import Plan
from linearize.plan.roles import select_parameters
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import LayoutSpec
from linearize.recipe.load import draft_recipe

ROLES = {"a.weight": {"new", "gate"}, "b.weight": {"new", "norm"}, "q.weight": {"qkv"}}


def plan_of(tables: dict[str, Any], plugins: Plugins, *overrides: str) -> Plan:
    return check_draft(draft_recipe(tables, overrides, plugins)).plan


def problems(tables: dict[str, Any], plugins: Plugins, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        plan_of(tables, plugins, *overrides)
    return list(caught.value.problems)


def test_a_plan_counts_what_each_stage_trains(tables: dict[str, Any], plugins: Plugins) -> None:
    plan = plan_of(tables, plugins)
    assert plan.linear == tuple(range(len(plan.sites)))
    align, distill = plan.stages
    assert 0 < align.num_trained < distill.num_trained == plan.mixer_parameters
    assert plan.state_bytes > 0


def test_the_state_grows_with_the_linear_sites_alone(tables: dict[str, Any], plugins: Plugins) -> None:
    whole = plan_of(tables, plugins)
    hybrid = plan_of(tables, plugins, "student.layout={ type = 'keep', sites = [0] }")
    assert hybrid.state_bytes * len(whole.sites) == whole.state_bytes * (len(whole.sites) - 1)


def test_a_layer_stage_on_all_sites_gives_kept_sites_a_mixer(tables: dict[str, Any], plugins: Plugins) -> None:
    keep = "student.layout={ type = 'keep', sites = [0] }"
    plan = plan_of(tables, plugins, keep, "stages.align.sites=all")
    assert 0 not in plan.linear
    assert 0 not in plan.stages[1].sites
    assert 0 in plan.stages[0].sites
    assert list(plan.mixers_by_site()) == list(range(len(plan.sites)))
    assert 0 not in plan_of(tables, plugins, keep).mixers_by_site()


def test_a_layout_that_names_a_site_too_many_is_told_the_sites_there_are(
    tables: dict[str, Any], plugins: Plugins
) -> None:
    count = len(plan_of(tables, plugins).sites)
    tables["student"]["layout"] = {"type": "keep", "sites": [0, 77]}
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code) == ("student.layout", "value_error")
    assert f"site 77 asked for, the teacher has {count} sites 0..{count - 1}" in problem.text


def test_a_layout_that_leaves_nothing_linear_is_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    count = len(plan_of(tables, plugins).sites)
    tables["student"]["layout"] = {"type": "stacked", "num_kept": count}
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code) == ("student.layout", "value_error")
    assert f"no site linear; the teacher has {count} sites 0..{count - 1}" in problem.text


def test_a_stage_with_an_unknown_role_is_told_the_roles_there_are(tables: dict[str, Any], plugins: Plugins) -> None:
    (problem,) = problems(tables, plugins, 'stages.align.train=["nwe"]')
    assert problem.path == "stages.align.train"
    assert "'nwe'. Did you mean 'new'? There are: conv, " in problem.text


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("stages.align.stpes=1", "unknown_key"),
        ("student.mixer.conv_widht=3", "unknown_key"),
        ("teacher.checkpoint=./nowhere", "checkpoint"),
    ],
)
def test_an_unknown_role_is_told_beside_what_else_is_wrong(
    tables: dict[str, Any], plugins: Plugins, override: str, code: str
) -> None:
    found = {problem.path: problem for problem in problems(tables, plugins, 'stages.align.train=["nwe"]', override)}
    path = override.partition("=")[0]
    assert found.keys() == {path, "stages.align.train"}
    assert found[path].code == code
    role = found["stages.align.train"].text
    assert ("as far as the other problems let it be seen" in role) == (not override.startswith("stages"))


def test_a_stage_that_trains_nothing_is_refused(tables: dict[str, Any], plugins: Plugins) -> None:
    (problem,) = problems(tables, plugins, 'stages.align.freeze=["new"]')
    assert problem.path == "stages.align.train"
    assert "trains nothing: train = ['new'] without freeze = ['new']" in problem.text


def test_a_whole_student_objective_cannot_train_sites_that_do_not_run(tables: dict[str, Any], plugins: Plugins) -> None:
    (problem,) = problems(tables, plugins, "stages.distill.sites=all")
    assert (problem.path, problem.code, problem.found) == ("stages.distill.sites", "not_layerwise", "all")


def test_problems_before_and_after_the_teacher_is_known_come_together(tables: dict[str, Any], plugins: Plugins) -> None:
    tables["student"]["layout"] = {"type": "keep", "sites": [77]}
    found = problems(tables, plugins, "stages.distill.steps=-1", 'stages.align.train=["nwe"]')
    assert [problem.path for problem in found] == [
        "stages.distill.steps", "student.layout", "stages.align.train",
    ]  # fmt: skip


def test_a_teacher_folder_that_cannot_be_read_is_a_problem_among_others(
    tables: dict[str, Any], plugins: Plugins, tmp_path: Path
) -> None:
    tables["teacher"]["checkpoint"] = str(tmp_path / "nowhere")
    tables["stages"][0]["lr"] = -1.0
    found = problems(tables, plugins)
    assert [problem.path for problem in found] == ["stages.align.lr", "teacher.checkpoint"]
    assert found[1].found == str(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"model_type": "llama"}'])
def test_a_teacher_folder_without_a_readable_config_is_a_problem(
    tables: dict[str, Any], plugins: Plugins, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    tables["teacher"]["checkpoint"] = str(tmp_path)
    (problem,) = problems(tables, plugins)
    assert (problem.path, problem.code) == ("teacher", "checkpoint")
    assert "config.json" in problem.text


def test_checking_reads_no_weight(tables: dict[str, Any], plugins: Plugins, tmp_path: Path) -> None:
    shutil.copy(Path(tables["teacher"]["checkpoint"]) / "config.json", tmp_path)
    tables["teacher"]["checkpoint"] = str(tmp_path)
    assert plan_of(tables, plugins).sites


def test_a_backend_that_cannot_run_here_is_a_problem_of_the_mixer(tables: dict[str, Any], plugins: Plugins) -> None:
    (problem,) = problems(tables, plugins, "run.device=cpu", "student.mixer.backend=mamba_ssm")
    assert (problem.path, problem.code) == ("student.mixer.backend", "backend")
    assert "'mamba_ssm'" in problem.text


def test_parameters_are_chosen_by_role_and_taken_out_by_role() -> None:
    assert select_parameters([ROLES], ["new"], []) == [("a.weight", "b.weight")]
    assert select_parameters([ROLES], ["new", "qkv"], ["norm"]) == [("a.weight", "q.weight")]
    with pytest.raises(
        ValueError, match=r"no parameter of the mixer has the role 'decay'\. There are: gate, new, norm, qkv"
    ):
        select_parameters([ROLES], ["new"], ["decay"])


def test_a_role_that_one_of_the_mixers_has_is_enough() -> None:
    mixers = [ROLES, {"c.weight": {"new", "decay"}}]
    assert select_parameters(mixers, ["decay"], []) == [(), ("c.weight",)]
    assert select_parameters(mixers, ["new"], ["decay"]) == [("a.weight", "b.weight"), ()]
    with pytest.raises(ValueError, match=r"has the role 'rope'\. There are: decay, gate, new, norm, qkv"):
        select_parameters(mixers, ["new", "rope"], [])


def test_plans_are_values(tables: dict[str, Any], plugins: Plugins) -> None:
    plan = plan_of(tables, plugins)
    assert dataclasses.replace(plan) == plan_of(tables, plugins)


class StrangersLayout:
    """Stands for a stranger's layout."""

    def __init__(self, config: Any) -> None:
        del config

    def linear_sites(self, sites: Any) -> Any:
        return self.returned(sites)

    @staticmethod
    def returned(sites: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def with_layout() -> Plugins:
    """What the checkout brings, and the stranger's layout."""
    plugins = Plugins.discover()
    spec = LayoutSpec(name="strangers", build=f"{__name__}:StrangersLayout", source="https://example.org")
    plugins.registry.registrar("stranger")(spec)
    return plugins


@pytest.mark.parametrize(
    "returned", [[1, 1], [1, 0], [0, 77], [-1], None, 3, ["0"], [0.0]], ids=lambda returned: str(returned)
)
def test_a_layout_that_returns_no_ascending_indices_is_told_with_its_plug_in(
    tables: dict[str, Any], with_layout: Plugins, monkeypatch: pytest.MonkeyPatch, returned: Any
) -> None:
    monkeypatch.setattr(StrangersLayout, "returned", staticmethod(lambda sites: returned))
    tables["student"]["layout"] = {"type": "strangers"}
    (problem,) = problems(tables, with_layout)
    assert (problem.path, problem.code) == ("student.layout", "plugin_fault")
    assert f"layout 'strangers' of plug-in 'stranger' failed: linear_sites gave {returned!r}; " in problem.text


def test_a_layout_gets_the_teachers_sites(
    tables: dict[str, Any], with_layout: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_tower = staticmethod(lambda sites: [site.index for site in sites if site.tower == "language"])
    monkeypatch.setattr(StrangersLayout, "returned", by_tower)
    tables["student"]["layout"] = {"type": "strangers"}
    plan = plan_of(tables, with_layout)
    assert {plan.sites[index].tower for index in plan.linear} == {"language"}
    assert 0 < len(plan.linear) < len(plan.sites)


def test_a_remark_is_kept_with_the_sites_where_the_mixer_makes_it(
    tables: dict[str, Any], plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = plan_of(tables, plugins)

    def remarks(mixer: Any) -> list[str]:
        return ["first half"] if mixer.site.index < 2 else ["second half", "long"]

    monkeypatch.setattr("linearize_mamba2.mixer.Mamba2Mixer.remarks", remarks, raising=False)
    plan = plan_of(tables, plugins)
    [group] = plan.mixers
    rest = tuple(range(2, len(plan.sites)))
    assert group.remarks == {"first half": (0, 1), "second half": rest, "long": rest}
    assert dataclasses.replace(group, remarks={}) == dataclasses.replace(silent.mixers[0], remarks={})


def test_a_role_that_the_mixers_of_later_sites_alone_have_is_no_problem_beside_others(
    tables: dict[str, Any], plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linearize_mamba2.mixer import Mamba2Mixer

    roles = Mamba2Mixer.roles

    def with_late(mixer: Any) -> Any:
        late = {"late"} if mixer.site.index == 3 else set()
        return {name: own | late for name, own in roles(mixer).items()}

    monkeypatch.setattr(Mamba2Mixer, "roles", with_late)
    overrides = ("run.device=cpu", 'stages.align.train=["late"]')
    assert plan_of(tables, plugins, *overrides).stages[0].sites == (3,)
    (problem,) = problems(tables, plugins, *overrides, "student.mixer.backend=mamba_ssm")
    assert problem.code == "backend"
