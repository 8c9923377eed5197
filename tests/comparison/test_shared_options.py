"""Compared mixers keep the options that they share, and a dry run shows in what cells differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import Field
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.comparison.cells import Comparison, plan_comparison
from linearize.comparison.shared_options import carry_over, differing_keys
from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec

Tables = Callable[..., dict[str, Any]]


def mixers(comparison: Comparison) -> list[dict[str, Any]]:
    return [cell.tables(0)["student"]["mixer"] for cell in comparison.cells]


def with_mixer(tables: dict[str, Any], **options: Any) -> dict[str, Any]:
    tables["student"]["mixer"] = {"type": "mamba2", **options}
    return tables


@pytest.mark.parametrize("varied", ["from the command line", "in the table"])
def test_varied_types_keep_the_options_that_they_share(tables: Tables, varied: str) -> None:
    types = ["mamba2", "retnet"]
    in_table = {"student": {"mixer": {"type": types}}} if varied == "in the table" else {}
    base = with_mixer(tables(vary=in_table), conv_width=3, rope=True)
    comparison = plan_comparison(base, mixers=None if in_table else types)
    assert [(mixer["type"], mixer["conv_width"], mixer["rope"]) for mixer in mixers(comparison)] == [
        ("mamba2", 3, True), ("retnet", 3, True),
    ]  # fmt: skip
    assert [cell.name for cell in comparison.cells] == types
    assert ("student.mixer.conv_width", 3) in comparison.cells[1].changes


def test_overrides_are_kept_too(tables: Tables) -> None:
    comparison = plan_comparison(with_mixer(tables()), ["student.mixer.conv_width=3"], mixers=["mamba2", "gla"])
    assert [mixer["conv_width"] for mixer in mixers(comparison)] == [3, 3]


def test_an_option_or_a_value_that_the_other_mixer_does_not_take_stays_behind(tables: Tables) -> None:
    base = with_mixer(tables(), qk_norm=True, conv_width=3)  # a choice of words in retnet; hgrn2 has none
    of_mamba2, of_retnet, of_hgrn2 = mixers(plan_comparison(base, mixers=["mamba2", "retnet", "hgrn2"]))
    assert (of_mamba2["qk_norm"], of_retnet["qk_norm"], "qk_norm" in of_hgrn2) == (True, "none", False)
    assert {mixer["conv_width"] for mixer in (of_mamba2, of_retnet, of_hgrn2)} == {3}


class Demanding(Config):
    conv_width: int = Field(ge=3)
    rank: int


class MyPlugin:
    @hookimpl
    def linearize_register(self, register: Register) -> None:
        register(MixerSpec(
            name="demanding", build="nowhere:Mixer", config=f"{__name__}:Demanding", source="https://example.org"
        ))  # fmt: skip


@pytest.mark.parametrize(("width", "carried"), [(3, (("student.mixer.conv_width", 3),)), (2, ())])
def test_an_option_is_kept_by_a_mixer_that_demands_others_and_not_by_one_that_refuses_it(
    width: int, carried: Any
) -> None:
    plugins = Plugins.discover()
    plugins.add(MyPlugin(), name="mine")
    change = ("student.mixer.type", "demanding")
    assert carry_over((change,), {"type": "mamba2", "conv_width": width}, plugins) == (change, *carried)


def test_a_table_that_says_a_whole_mixer_keeps_nothing_of_another(tables: Tables) -> None:
    whole = [{"type": "mamba2"}, {"type": "retnet"}]
    base = with_mixer(tables(vary={"student": {"mixer": whole}}), conv_width=3)
    assert [mixer["conv_width"] for mixer in mixers(plan_comparison(base))] == [3, 2]
    cells = [{"name": "a"}, {"name": "b", "set": {"student": {"mixer": {"type": "retnet"}}}}]
    base = with_mixer(tables(cells=cells), conv_width=3)
    assert [mixer["conv_width"] for mixer in mixers(plan_comparison(base))] == [3, 2]


def test_an_option_varied_before_the_type_is_not_dropped_by_it(tables: Tables) -> None:
    vary = {"student": {"mixer": {"conv_width": [2, 3], "type": ["gla", "retnet"]}}}
    comparison = plan_comparison(tables(vary=vary))
    assert [(mixer["type"], mixer["conv_width"]) for mixer in mixers(comparison)] == [
        ("gla", 2), ("retnet", 2), ("gla", 3), ("retnet", 3),
    ]  # fmt: skip


def test_what_differs_is_named_with_every_value_and_its_cells(tables: Tables) -> None:
    base = with_mixer(tables(vary={"stages": {"distill": {"lr": [1e-3, 2e-3]}}}), conv_width=3, qk_norm=True)
    comparison = plan_comparison(base, mixers=["mamba2", "retnet"])
    found = {(path, str(value)): len(names) for path, value, names in differing_keys(comparison.cells)}
    assert found.items() >= {
        ("student.mixer.type", "mamba2"): 2, ("student.mixer.type", "retnet"): 2,
        ("student.mixer.qk_norm", "True"): 2, ("student.mixer.qk_norm", "none"): 2,
        ("stages.distill.lr", "0.001"): 2, ("stages.distill.lr", "0.002"): 2,
    }.items()  # fmt: skip
    assert "student.mixer.conv_width" not in {path for path, _ in found}


def test_a_dry_run_shows_what_differs(tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "compare.toml"
    path.write_text(tomli_w.dumps(with_mixer(tables(), qk_norm=True)), encoding="utf-8")
    result = CliRunner().invoke(app, ["compare", str(path), "--dry-run", "--mixer", "mamba2,retnet"])
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.partition("what differs")[2].splitlines()]
    assert ["student.mixer.qk_norm", "true", "mamba2"] in rows
    assert ['"none"', "retnet"] in rows
