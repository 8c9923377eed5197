"""What a run prints, on a terminal and into a log file."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from linearize.pipeline.display import ConsoleDisplay, SilentDisplay, stage_outcome, step_numbers
from linearize.plan.check import check_draft
from linearize.plan.plan import Plan, StagePlan
from linearize.plan.table import byte_size
from linearize.plugin.discovery import Plugins
from linearize.recipe.load import LoadedRecipe, draft_recipe
from linearize.recipe.site_ranges import site_ranges

SUMMARY = {
    "name": "align", "objective": "layer_mse", "steps": 2, "seconds": 75.2, "tokens": 3_120_000, "first_loss": 1.02,
    "last_loss": 0.0412, "first_sites": {"0": 0.9, "1": 1.1}, "sites": {"0": 0.5, "1": 0.7},
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def metrics(step: int, **changes: Any) -> dict[str, Any]:
    line = {
        "step": step, "loss": 0.0412, "lr": 3e-4, "tokens": 1000 * step,
        "tokens_per_second": 18402.3, "memory_gib": 2.44,
    }  # fmt: skip
    return line | changes


def plain(clock: Clock | None = None) -> tuple[ConsoleDisplay, io.StringIO]:
    out = io.StringIO()
    return ConsoleDisplay(Console(file=out, width=120), clock=clock or Clock()), out


@pytest.fixture
def planned(tables: dict[str, Any], plugins: Plugins) -> tuple[LoadedRecipe, Plan]:
    tables["student"]["layout"] = {"type": "keep", "sites": [1]}
    tables["stages"][0]["steps"] = 2000
    checked = check_draft(draft_recipe(tables, [], plugins))
    recipe, plan = checked.recipe, checked.plan
    return recipe, plan


def test_a_step_is_one_line_of_fixed_columns_with_units() -> None:
    first = step_numbers(120, 2000, metrics(120))
    assert first == "step  120/2000  loss 0.0412    lr 3.0e-04  tok/s    18,402  mem   2.4 GiB"
    second = step_numbers(5, 2000, metrics(5, loss=12.1, lr=1.5e-3, tokens_per_second=999_999.0, memory_gib=76.5))
    assert len(second) == len(first)
    assert step_numbers(5, 9, metrics(5, sites={"0": 0.4, "1": 0.6})).endswith("  site error 0.500")


def test_plain_lines_come_at_most_every_few_seconds_and_the_last_step_always(
    planned: tuple[LoadedRecipe, Plan],
) -> None:
    clock = Clock()
    display, out = plain(clock)
    display.plan(*planned)
    out.truncate(0)
    display.stage_started(0, planned[1].stages[0])
    for step in range(10, 2001, 10):
        clock.now += 0.1  # 20 s in all
        display.step(step, metrics(step))
    lines = out.getvalue().strip("\0").splitlines()
    assert lines[0].startswith("stage 1/2 align  step   10/2000  loss 0.0412 ")
    assert lines[-1].startswith("stage 1/2 align  step 2000/2000 ")
    assert 4 <= len(lines) <= 6


def test_a_finished_stage_is_one_line_and_says_when_it_was_done_before(planned: tuple[LoadedRecipe, Plan]) -> None:
    display, out = plain()
    display.stage_started(0, planned[1].stages[0])
    display.stage_finished(0, SUMMARY)
    display.stage_finished(1, {**SUMMARY, "name": "distill", "sites": {}, "first_sites": {}})
    done, found = out.getvalue().splitlines()
    assert done == (
        "stage 1 align  done: 2 steps in 1 min 15 s, 3.12 M tokens, loss 1.02 → 0.0412, "
        "site error 1.00 → 0.600 of the variance (worst: site 1, 0.700)"
    )
    assert found.startswith("stage 2 distill  was done before: 2 steps")
    assert "site error" not in found


def test_the_plan_names_sites_counts_tokens_and_rates(planned: tuple[LoadedRecipe, Plan]) -> None:
    recipe, plan = planned
    display, out = plain()
    display.plan(recipe, plan)
    text = " ".join(out.getvalue().split())  # where the checkout lies decides where lines break
    count = len(plan.sites)
    for part in (
        "Plan of tiny",
        f"{count} sites (embedding 0-1; language 2-{count - 1})",
        f"mamba2 at {count - 1} of {count} sites (0, 2-{count - 1}), seeded by mimic",
        "stays at sites 1 (layout keep (sites [1]))",
        f"{count - 1} of {plan.mixers[0].num_parameters:,} parameters each, {plan.mixer_parameters:,} in all",
        f"{byte_size(plan.state_bytes)} per sequence",
        "auto, float32",
        *("1 align", "2 distill", "layer_mse", "logit_kl", "new + qkv", "2,000", "1.0e-03"),
        f"{plan.stages[0].num_trained:,}",
    ):
        assert part in text, part


def test_the_plan_has_a_line_for_each_kind_of_mixer(tables: dict[str, Any], plugins: Plugins) -> None:
    window = {"sites": [0, 1], "mixer": {"type": "sliding_window", "window": 4}}
    tables["student"]["sites"] = [window]
    checked = check_draft(draft_recipe(tables, [], plugins))
    plan, (display, out) = checked.plan, plain()
    display.plan(checked.recipe, plan)
    rows = [line.split() for line in out.getvalue().splitlines()]
    for group, sites in zip(plan.mixers, ("0-1", f"2-{len(plan.sites) - 1}"), strict=True):
        size = [f"{group.num_parameters:,}", *byte_size(group.state_bytes).split()]
        assert [group.component.spec.name, sites, *size] in rows
    assert f"{len(plan.sites)} of 2 kinds, {plan.mixer_parameters:,} parameters in all" in out.getvalue()


def test_what_mixers_remark_is_told_with_the_plan_once_for_all_their_sites(planned: tuple[LoadedRecipe, Plan]) -> None:
    recipe, plan = planned
    remarked = tuple(dataclasses.replace(group, remarks={"rope does nothing": (2, 3)}) for group in plan.mixers)
    display, out = plain()
    display.plan(recipe, dataclasses.replace(plan, mixers=remarked))
    assert out.getvalue().endswith("note: mamba2 at sites 2-3: rope does nothing\n")


def test_what_the_student_cannot_do_is_told_with_the_plan(
    caplog: pytest.LogCaptureFixture, planned: tuple[LoadedRecipe, Plan]
) -> None:
    recipe, plan = planned[0], dataclasses.replace(planned[1], caveats=("it reads from left to right",))
    display, out = plain()
    display.plan(recipe, plan)
    assert out.getvalue().endswith("warning: it reads from left to right\n")
    with caplog.at_level(logging.WARNING, "linearize"):
        SilentDisplay().plan(recipe, plan)
    assert [record.message for record in caplog.records] == ["it reads from left to right"]


def test_the_plan_of_a_loaded_model_counts_its_weights(planned: tuple[LoadedRecipe, Plan]) -> None:
    display, out = plain()
    display.plan(*planned, nn.Linear(1024, 1024, dtype=torch.bfloat16), torch.device("cpu"))
    largest = max(stage.num_trained for stage in planned[1].stages)
    assert f"about {byte_size(2 * 1024 * 1025 + 12 * largest)} for weights, gradients and optimizer" in out.getvalue()
    assert "cpu, float32" in out.getvalue()


def test_a_terminal_gets_a_bar_that_fits_80_columns_and_leaves_one_line(planned: tuple[LoadedRecipe, Plan]) -> None:
    out = io.StringIO()
    clock = Clock()
    display = ConsoleDisplay(Console(file=out, width=80, force_terminal=True, color_system=None), clock=clock)
    display.stage_started(0, planned[1].stages[0])
    display.step(1900, metrics(1900))  # resumed: 1000 tokens a step at 18402 tokens a second
    display.close()
    assert "1900/2000 loss 0.0412 18.4 k tok/s 2.4 GiB 5.4 s left" in out.getvalue()
    display.stage_started(0, planned[1].stages[0])
    for step in (1900, 1910):
        display.step(step, metrics(step))
        clock.now += 2
    display.close()
    assert "1910/2000 loss 0.0412 18.4 k tok/s 2.4 GiB 18.0 s left" in out.getvalue()
    display.stage_finished(0, SUMMARY)
    last = re.sub(r"\x1b\[\d*[A-Za-z]", "", out.getvalue().splitlines()[-1])
    assert last.startswith("stage 1 align  done:")


def test_the_evaluation_counts_questions_and_ends_with_its_time() -> None:
    clock = Clock()
    display, out = plain(clock)
    with display.evaluation() as progress:
        assert progress is not None
        for done in range(0, 1201, 60):
            clock.now += 1
            progress("count: student answers", done, 1200)
    lines = out.getvalue().splitlines()
    assert lines[0] == "evaluation      0/1,200  count: student answers"
    assert lines[-2] == "evaluation  1,200/1,200  count: student answers"
    assert lines[-1] == "evaluation  done in 21.0 s"
    assert len(lines) <= 7


def test_a_failed_evaluation_is_not_said_to_be_done() -> None:
    display, out = plain()
    with pytest.raises(RuntimeError, match="broken"), display.evaluation():
        raise RuntimeError("broken")
    assert out.getvalue() == ""


def test_results_are_a_table_a_sentence_and_the_page() -> None:
    task = {
        "teacher": 0.98, "student": 0.93, "retention": 0.949, "questions": 200, "teacher_interval": [0.95, 0.99],
        "student_interval": [0.89, 0.96], "retention_interval": [0.92, 0.97],
    }  # fmt: skip
    results = {
        "tasks": {"count": task}, "average_retention": 0.949, "average_retention_interval": [0.92, 0.97], "kl": 0.0123,
        "top1_agreement": 0.981,
    }  # fmt: skip
    display, out = plain()
    display.results(results, Path("runs/tiny/report/index.html"))
    text = out.getvalue()
    for part in ("count", "98.0 %", "93.0 %", "94.9 %", "89.0–96.0", "200", "0.0123 nats per answer token", "98.1 %"):
        assert part in text, part
    assert text.endswith("report: runs/tiny/report/index.html\n")


def test_results_without_an_evaluation_say_so() -> None:
    display, out = plain()
    results = {"tasks": {}, "average_retention": None, "kl": None, "top1_agreement": None}
    display.results(results, Path("page.html"))
    assert out.getvalue() == "The student was not evaluated.\nreport: page.html\n"


def test_text_in_square_brackets_is_printed_as_it_is() -> None:
    display, out = plain()
    display.warn("bad record [3] in [/data]")
    assert out.getvalue() == "warning: bad record [3] in [/data]\n"


def test_the_silent_display_prints_nothing_but_logs_warnings(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, planned: tuple[LoadedRecipe, Plan]
) -> None:
    display = SilentDisplay()
    stage: StagePlan = planned[1].stages[0]
    display.plan(*planned)
    display.stage_started(0, stage)
    display.step(1, metrics(1))
    display.stage_finished(0, SUMMARY)
    with display.evaluation() as progress:
        assert progress is None
    with caplog.at_level(logging.WARNING, logger="linearize"):
        display.note("unseen")
        display.warn("a checkpoint is damaged")
    display.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [record.getMessage() for record in caplog.records] == ["a checkpoint is damaged"]


@pytest.mark.parametrize(("seconds", "text"), [(75.2, "1 min 15 s"), (9.96, "10.0 s")])
def test_a_stages_outcome_gives_its_time_in_units(seconds: float, text: str) -> None:
    assert f"2 steps in {text}, " in stage_outcome({**SUMMARY, "seconds": seconds})


def test_ranges_and_sizes_read_as_people_write_them() -> None:
    assert site_ranges([5, 0, 1, 2, 8, 7]) == "0-2, 5, 7-8"
    assert [byte_size(size) for size in (0, 1023, 67584, 3 << 20, 5 << 30)] == [
        "0 B", "1023 B", "66.0 KiB", "3.0 MiB", "5.0 GiB",
    ]  # fmt: skip
