"""The two fidelity recipes say what the paper and the released code say, in all but scale."""

from __future__ import annotations

from typing import Any

import pytest
from checkout import EXAMPLES
from linearize_mmmamba.schedule import MmMambaSchedule, MmMambaScheduleConfig

from linearize.plugin.discovery import Plugins
from linearize.recipe.load import LoadedRecipe, load_recipe
from linearize.recipe.model import Stage

SCALE = {"steps", "batch_size", "lr", "max_tokens"}
RECIPES = {"mmmamba_paper.toml": "paper", "mmmamba_released_code.toml": "code"}


def load(name: str) -> LoadedRecipe:
    return load_recipe(EXAMPLES / name, [], Plugins.discover())


@pytest.mark.parametrize("name", RECIPES)
def test_only_the_scale_of_a_stage_is_the_demos(name: str) -> None:
    variant: Any = RECIPES[name]
    stages = MmMambaSchedule(MmMambaScheduleConfig(variant=variant)).stages()
    recipe = load(name)
    for number, (own, table) in enumerate(zip(recipe.recipe.stages, stages, strict=True)):
        due = Stage.model_validate(table)
        found, wanted = (stage.model_dump(exclude={*SCALE, "objective"}) for stage in (own, due))
        for dump in (found, wanted):
            dump["lr_schedule"].pop("planned_steps")
        assert found == wanted
        objective = recipe.components[f"stages.{number}.objective"]
        assert objective.spec.name == due.objective.type
        assert objective.config == objective.spec.config_class().model_validate(due.objective.options())


def test_the_released_codes_stage_2_stops_at_the_same_share_of_its_plan() -> None:
    stages = MmMambaSchedule(MmMambaScheduleConfig(variant="code")).stages()
    own, due = load("mmmamba_released_code.toml").recipe.stages[1], Stage.model_validate(stages[1])
    assert own.lr_schedule.planned_steps is not None
    assert due.lr_schedule.planned_steps is not None
    assert own.steps / own.lr_schedule.planned_steps == pytest.approx(
        due.steps / due.lr_schedule.planned_steps, rel=0.01
    )


def test_the_papers_mixer_has_no_activation_no_norm_and_no_time_step_on_the_input() -> None:
    mixer: Any = load("mmmamba_paper.toml").components["student.mixer"].config
    assert (mixer.conv_activation, mixer.output_norm, mixer.dt_scales_input) == ("identity", False, False)
    assert (mixer.gate, mixer.conv_width, mixer.rope) == (True, 2, False)


def test_the_released_codes_mixer_is_what_the_published_checkpoints_hold() -> None:
    from linearize_mmmamba.layer import FIXED_OPTIONS

    mixer = load("mmmamba_released_code.toml").components["student.mixer"].config.model_dump()
    assert {name: mixer[name] for name in FIXED_OPTIONS} == FIXED_OPTIONS
    assert mixer["conv_width"] == 2


@pytest.mark.parametrize("variant", ["corrected", "paper", "code"])
def test_every_variant_fits_the_roles_of_the_mamba2_mixer(variant: str) -> None:
    overrides = [f"schedule.variant={variant}"]
    recipe = load_recipe(EXAMPLES / "mmmamba_hovle.toml", overrides, Plugins.discover())
    from linearize.plan.mixers import meta_mixer
    from linearize.plan.roles import select_parameters
    from linearize.protocols import AttentionSite

    site = AttentionSite(
        index=0, path="layer", tower="language", layer=0, cache_index=0,
        hidden_size=16, num_heads=4, num_key_value_heads=2, key_dim=4, value_dim=4,
    )  # fmt: skip
    roles = meta_mixer(recipe.components["student.mixer"], site).roles()
    trained = [set(*select_parameters([roles], stage.train, stage.freeze)) for stage in recipe.recipe.stages]
    frozen = {"dt_bias", "A_log"} if variant == "code" else set()
    assert trained[1] - trained[0] == {"q_proj.weight", "k_proj.weight", "v_proj.weight"}
    assert trained[1] == roles.keys()
    assert roles.keys() - trained[2] == frozen
