"""The sliding window beside a linear mixer: the kit with several of them, the sum, its start, and bad options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from linearize_sliding_window.combined import SwaLinearMixer
from linearize_sliding_window.config import SwaLinearConfig
from linearize_sliding_window.mixer import SlidingWindowMixer
from pydantic import ValidationError

from linearize.errors import PluginError, RecipeError
from linearize.plugin.components import component_title
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import SeederSpec
from linearize.protocols import AttentionSite
from linearize.recipe.load import load_recipe
from linearize.testing import MixerConformance, SeederConformance
from linearize.testing.mixer_inputs import attention_weights, installed_plugins
from linearize.testing.numbers import draw

SITE = MixerConformance.site
DELTA = {"type": "gated_delta_net", "conv_width": 4}


def recipe(mixer: Any) -> dict[str, Any]:
    stage = {"name": "align", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 2, "lr": 1e-3}
    return {
        "run": {"name": "tiny"}, "teacher": {"type": "hovle"}, "student": {"mixer": mixer}, "data": {"type": "glance"},
        "stages": [stage],
    }  # fmt: skip


def build(site: AttentionSite = SITE, **options: Any) -> SwaLinearMixer:
    table = {"window": 6, "linear": DELTA, **options}
    return SwaLinearMixer(SwaLinearConfig.model_validate(table, context={"plugins": installed_plugins()}), site)


class TestSwaLinear(MixerConformance):
    name = "swa_linear"
    options = (
        {"window": 6, "linear": DELTA},
        {"window": 80, "sinks": 2, "gates": "site", "linear": {"type": "mamba2", "rope": True}},
        {"window": 5, "combine": "average", "linear": {"type": "simple_gla", "gate": False, "qkv_bias": True}},
    )

    def reference(self, mixer: Any, x_TD: torch.Tensor, position: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The two branches, each of which has a reference of its own in its tests, added head by head."""
        gates = [mixer.window_gate, mixer.linear_gate] if mixer.config.combine == "sum" else [torch.tensor([0.5])] * 2
        outputs = [branch(x_TD[None], position=position)[0][0] for branch in (mixer.window, mixer.linear)]
        heads = range(SITE.num_heads)
        return torch.stack(
            [sum(g[h % len(g)] * y[:, h] for g, y in zip(gates, outputs, strict=True)) for h in heads], 1
        )


class SeedsSwaLinear(SeederConformance):
    def mixer(self, site: AttentionSite) -> SwaLinearMixer:
        return build(site, linear={"type": "gla", "qkv_bias": True, "key_value_heads": "per_query"})


class TestMimicSeedsIt(SeedsSwaLinear):
    name = "mimic"


class TestScratchSeedsIt(SeedsSwaLinear):
    name = "scratch"


def run(mixer: Any, *, state: Any = None) -> torch.Tensor:
    x = draw(2, 30, SITE.hidden_size, seed=0, dtype=torch.float32, device="cpu")
    return mixer(x, state=state)[0]


@pytest.mark.parametrize("combine", ["sum", "average"])
def test_the_output_is_that_of_both_branches_added(combine: str) -> None:
    mixer = build(combine=combine)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    shares = [0.5, 0.5]
    if combine == "sum":
        torch.nn.init.constant_(mixer.window_gate, 0.25)
        torch.nn.init.constant_(mixer.linear_gate, 3.0)
        shares = [0.25, 3.0]
    wanted = shares[0] * run(mixer.window) + shares[1] * run(mixer.linear)
    torch.testing.assert_close(run(mixer), wanted)


def test_a_student_that_mimics_starts_as_the_window_alone() -> None:
    mixer, weights = build(), attention_weights(SITE, biases=False)
    spec = Plugins.discover().registry.get(SeederSpec, "mimic")
    report = spec.builder()(spec.config_class()()).seed(weights, mixer, site=SITE, generator=torch.Generator())
    window = SlidingWindowMixer(mixer.window.config, SITE)
    window.load_state_dict({f"{name}_proj.weight": getattr(weights, name) for name in "qkv"})
    assert torch.equal(run(mixer), run(window))
    copied = {name for name, account in report.parameters.items() if account == "copied"}
    assert copied == {f"{branch}.{name}_proj.weight" for branch in ("window", "linear") for name in "qkv"}


def test_stages_can_train_one_branch_or_the_gates_alone() -> None:
    roles = build().roles()
    assert roles["window.q_proj.weight"] == {"qkv", "window"}
    assert roles["linear.A_log"] == {"new", "decay", "linear"}
    assert roles["linear_gate"] == {"new", "mix"}
    assert build().describe_backends("cpu") == build().linear.describe_backends("cpu")


@pytest.mark.parametrize("combine", ["sum", "average"])
def test_a_window_that_is_dropped_leaves_the_linear_branch_alone_and_only_in_training(combine: str) -> None:
    mixer = build(combine=combine, window_dropout=0.5)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    mixer.eval()
    whole, alone = run(mixer), run(mixer.linear)
    mixer.train()
    torch.manual_seed(0)
    seen = [output for _ in range(20) for output in run(mixer)]
    dropped = [any(torch.allclose(output, row) for row in alone) for output in seen]
    kept = [any(torch.allclose(output, row) for row in whole) for output in seen]
    assert [a != b for a, b in zip(dropped, kept, strict=True)] == [True] * 40
    # 40 throws of a fair coin: fewer than 8 of a kind have a chance below 1 in 10,000.
    assert 8 <= sum(dropped) <= 32


@pytest.mark.parametrize(
    ("table", "path", "code"),
    [
        ({"type": "glaa"}, "linear.type", "unknown_name"),
        ({"conv_width": -1}, "linear.conv_width", "greater_than_equal"),
        ("gla", "linear", "table_type"),
        ({"type": "gla", "conv_widht": 4}, "linear.conv_widht", "unknown_key"),
        (
            {"type": "swa_linear", "linear": {"type": "gla", "chunk_size": "many"}},
            "linear.linear.chunk_size",
            "int_parsing",
        ),
        ({"type": "swa_linear"}, "linear", "value_error"),
    ],
)
def test_what_is_wrong_with_the_inner_mixer_is_told_by_its_path(table: Any, path: str, code: str) -> None:
    mixer = {"type": "swa_linear", "window": 8, "linear": table}
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(mixer), [], installed_plugins())
    (found,) = caught.value.problems
    assert (found.path, found.code) == (f"student.mixer.{path}", code)


def test_what_an_inner_mixer_refuses_is_told_with_where_its_table_is() -> None:
    site = replace(SITE, num_layers=0)
    with pytest.raises(PluginError, match=r"^linear: mixer 'lightning' "):
        build(site, linear={"type": "lightning"})


def test_overrides_reach_the_inner_mixer_and_the_resolved_recipe_reads_back() -> None:
    tables = recipe({"type": "swa_linear", "linear": {"type": "gla", "conv_width": 4}})
    overrides = ["student.mixer.linear.type=retnet", "student.mixer.linear.rope=false"]
    loaded = load_recipe(tables, overrides, installed_plugins())
    inner = loaded.tables()["student"]["mixer"]["linear"]
    assert (inner["type"], inner["rope"], inner["conv_width"]) == ("retnet", False, 2)
    assert load_recipe(loaded.tables(), [], installed_plugins()).tables() == loaded.tables()


def test_a_part_of_the_inner_table_changes_the_default_mixer() -> None:
    overrides = ["student.mixer.type=swa_linear", "student.mixer.linear.conv_width=3"]
    loaded = load_recipe(recipe({"type": "gla"}), overrides, installed_plugins())
    inner = loaded.tables()["student"]["mixer"]["linear"]
    assert (inner["type"], inner["conv_width"]) == ("gated_delta_net", 3)


def test_people_are_told_what_is_inside() -> None:
    table = {"type": "swa_linear", "window": 8, "linear": {"type": "gla", "rope": False}}
    assert component_title(table) == "swa_linear (gla)"
    assert component_title({"type": "gla"}) == "gla"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"linear_start": 0.5}, "gates = 'head' and linear_start = 0.5"),
        ({"gates": "site"}, "gates = 'site' and linear_start = 0.0"),
    ],
)
def test_gates_of_an_average_are_refused_with_what_was_found_and_what_to_do(options: Any, found: str) -> None:
    with pytest.raises(ValidationError, match=f"{found}: an average has no gates; leave both out or set combine"):
        build(combine="average", **options)
