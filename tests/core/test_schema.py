"""The JSON Schema of recipes: what is right is valid, and what `check` calls an unknown key or a wrong value is not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from checkout import EXAMPLES
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.recipe.load import load_recipe
from linearize.recipe.schema import recipe_schema
from linearize.recipe.toml import apply_override

EXAMPLES = sorted((EXAMPLES).glob("*.toml"))


@pytest.fixture(scope="module")
def validator(plugins: Plugins) -> Any:
    schema = recipe_schema(plugins)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def faults(validator: Any, tables: dict[str, Any]) -> list[str]:
    return [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(tables)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid_as_it_stands(validator: Any, path: Path) -> None:
    assert faults(validator, tomllib.loads(path.read_text(encoding="utf-8"))) == []


def test_a_resolved_recipe_is_valid(validator: Any, tables: dict[str, Any], plugins: Plugins) -> None:
    resolved = load_recipe(tables, ["student.mixer={ type = 'swa_linear', window = 8 }"], plugins).tables()
    assert faults(validator, json.loads(json.dumps(resolved))) == []


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("run.seeed=3", "run"),
        ("run.seed=-1", "run.seed"),
        ("stages.0.stpes=1", "stages.0"),
        ("student.mixer.conv_widht=4", "student.mixer"),
        ("student.mixer.type=manba2", "student.mixer.type"),
        ("student.mixer={ type = 'swa_linear', linear = { type = 'gla', rope = 3 } }", "student.mixer.linear.rope"),
        ("student.sites=[{ sites = '0-1', mixer = { type = 'gla', rope = 3 } }]", "student.sites.0.mixer.rope"),
        ("evaluate.benchmarks=[{ type = 'glance', questions = 1.5 }]", "evaluate.benchmarks.0.questions"),
        ("compare.seeds=0", "compare.seeds"),
    ],
)  # fmt: skip
def test_what_check_refuses_in_a_table_is_not_valid(
    validator: Any, tables: dict[str, Any], override: str, path: str
) -> None:
    apply_override(tables, override)
    assert faults(validator, tables) == [path]


class InnerConfig(Config):
    required: int = 1


class OwnConfig(Config):
    default: InnerConfig = InnerConfig()


def test_an_option_of_a_stranger_is_described_whatever_its_name(tables: dict[str, Any]) -> None:
    plugins = Plugins()
    spec = MixerSpec(name="own", build="no.such:Thing", config=f"{__name__}:OwnConfig", source="https://example.org")
    plugins.registry.registrar("stranger")(spec)
    validator = jsonschema.Draft202012Validator(recipe_schema(plugins))
    assert faults(validator, {"student": {"mixer": {"type": "own", "default": {"required": 2}}}}) == []
    assert faults(validator, {"student": {"mixer": {"type": "own", "default": {"required": "x"}}}}) == [
        "student.mixer.default.required"
    ]


def test_a_component_whose_options_cannot_be_imported_takes_any() -> None:
    plugins = Plugins()
    spec = MixerSpec(name="odd", build="no.such:Thing", config="no.such:Config", source="https://example.org")
    plugins.registry.registrar("stranger")(spec)
    validator = jsonschema.Draft202012Validator(recipe_schema(plugins))
    assert faults(validator, {"student": {"mixer": {"type": "odd", "anything": 1}}}) == []


def test_the_command_prints_it(plugins: Plugins) -> None:
    result = CliRunner().invoke(app, ["schema"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, recipe_schema(plugins))
