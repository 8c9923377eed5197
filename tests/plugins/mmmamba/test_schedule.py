from __future__ import annotations

from typing import Any

import pytest
from linearize_mmmamba.schedule import MmMambaSchedule, MmMambaScheduleConfig
from pydantic import ValidationError

from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.recipe.model import Stage

VARIANTS = ("corrected", "paper", "code")


def stages(variant: Any) -> list[Stage]:
    return [Stage.model_validate(table) for table in MmMambaSchedule(MmMambaScheduleConfig(variant=variant)).stages()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stages_and_their_objectives_are_valid_tables(variant: str) -> None:
    first, second, third = stages(variant)
    LayerMseConfig.model_validate(first.objective.options())
    LayerMseConfig.model_validate(second.objective.options())
    LogitKlConfig.model_validate(third.objective.options())
    assert [stage.objective.type for stage in (first, second, third)] == ["layer_mse", "layer_mse", "logit_kl"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_paper_and_code_agree_on_is_the_same_in_every_variant(variant: str) -> None:
    found = stages(variant)
    assert [stage.name for stage in found] == ["align-new", "align-mixer", "distill"]
    assert [stage.train for stage in found] == [("new",), ("new", "qkv"), ("new", "qkv")]
    assert [stage.sites for stage in found] == ["all", "all", "layout"]
    assert [stage.batch_size for stage in found] == [128, 128, 64]
    assert [stage.lr for stage in found] == [1e-3, 5e-4, 5e-5]
    assert {stage.optimizer.weight_decay for stage in found} == {0.05}
    assert {stage.optimizer.betas for stage in found} == {(0.9, 0.999)}


def test_the_paper_takes_the_layer_loss_after_the_output_projection_and_clips_at_five() -> None:
    first, second, third = stages("paper")
    for stage in (first, second):
        options = LayerMseConfig.model_validate(stage.objective.options())
        assert (options.space, options.scale, options.reduction) == ("output", 1.0, "sum")
    assert [stage.steps for stage in (first, second, third)] == [20_000] * 3
    assert {stage.clip for stage in (first, second, third)} == {5.0}
    assert third.freeze == ()


def test_the_code_stops_stage_2_after_one_epoch_of_a_plan_of_50000_steps() -> None:
    first, second, third = stages("code")
    assert (second.steps, second.lr_schedule.planned_steps) == (13_293, 50_000)
    assert [stage.lr_schedule.planned_steps for stage in (first, third)] == [None, None]
    assert [stage.steps for stage in (first, third)] == [20_000, 20_000]


def test_the_code_freezes_the_decay_in_stage_3_and_sums_the_divergence_over_padding_too() -> None:
    first, _, third = stages("code")
    divergence = LogitKlConfig.model_validate(third.objective.options())
    assert third.freeze == ("decay",)
    assert (divergence.tokens, divergence.normalize, divergence.temperature) == ("all", "batch", 1.0)
    assert LayerMseConfig.model_validate(first.objective.options()).tokens == "all"
    assert {stage.clip for stage in stages("code")} == {2.0}
    assert {stage.optimizer.no_decay for stage in stages("code")} == {"biases"}


def test_corrected_trains_the_decay_in_stage_3_and_averages_over_tokens_that_are_no_padding() -> None:
    first, second, third = stages("corrected")
    divergence = LogitKlConfig.model_validate(third.objective.options())
    assert third.freeze == ()
    assert (divergence.tokens, divergence.normalize) == ("valid", "token")
    for stage in (first, second):
        options = LayerMseConfig.model_validate(stage.objective.options())
        assert (options.space, options.tokens) == ("heads", "valid")


def test_tables_of_one_schedule_share_nothing_that_an_overlay_could_change() -> None:
    schedule = MmMambaSchedule(MmMambaScheduleConfig())
    schedule.stages()[0]["objective"]["scale"] = 1.0
    schedule.stages()[0]["optimizer"]["weight_decay"] = 9.0
    assert schedule.stages()[0]["objective"]["scale"] == 1000.0
    assert schedule.stages()[1]["optimizer"]["weight_decay"] == 0.05


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValidationError, match="corrected"):
        MmMambaScheduleConfig(variant="papre")
