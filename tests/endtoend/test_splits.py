"""What a recipe trains on, what its teacher was trained on and what it is asked never meet."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest
from checkout import EXAMPLES, ROOT
from linearize_glance.benchmark import GlanceBenchmark
from linearize_glance.config import GlanceBenchmarkConfig, GlanceConfig
from linearize_glance.source import GlanceSource

from linearize.plugin.discovery import Plugins
from linearize.protocols.conversation import Conversation
from linearize.recipe.load import LoadedRecipe, load_recipe
from linearize.recipe.toml import read_tables

pytestmark = pytest.mark.slow

LOOKED_AT = 400
"""Conversations of each stream; what makes all others differ is tested with the streams themselves."""


def _glance_recipes() -> Iterator[Any]:
    """Every example's recipe; of a comparison the one that its cells share, since cells are asked the same."""
    for path in sorted((EXAMPLES).glob("*.toml")):
        tables = {name: table for name, table in read_tables(path).items() if name != "compare"}
        recipe = load_recipe(tables, [], Plugins.discover())
        if recipe.components["data"].spec.name == "glance":
            yield pytest.param(recipe, id=path.stem)


@pytest.mark.parametrize("recipe", list(_glance_recipes()))
def test_recipes_train_on_one_split_and_are_asked_another(recipe: LoadedRecipe) -> None:
    components = recipe.components
    assert components["data"].config.split == "distil"  # type: ignore[attr-defined]
    benchmarks = [part for name, part in components.items() if name.startswith("evaluate.benchmarks.")]
    assert benchmarks
    for benchmark in benchmarks:
        assert benchmark.config.split == "evaluation"  # type: ignore[attr-defined]


def test_the_teacher_was_trained_on_a_split_of_its_own() -> None:
    """In the script that made it: what is drawn for training, and what its questions are drawn from."""
    tree = ast.parse((ROOT / "teachers" / "train_embedded_hovle.py").read_text(encoding="utf-8"))
    splits: dict[str, set[str]] = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        for keyword in call.keywords:
            if keyword.arg == "split":
                splits.setdefault(call.func.id, set()).add(ast.literal_eval(keyword.value))  # type: ignore[attr-defined]
    assert splits["GlanceConfig"] == {"teacher"}
    assert splits["GlanceBenchmarkConfig"] <= {"validation", "evaluation"}


def test_no_conversation_of_one_stream_is_found_in_another(demo: Any) -> None:
    components = load_recipe(demo.recipe, [], Plugins.discover()).components
    distil = components["data"].build()
    teacher = GlanceSource(GlanceConfig(split="teacher"))
    asked = components["evaluate.benchmarks.0"].build()
    chosen_on = GlanceBenchmark(GlanceBenchmarkConfig(split="validation", questions=LOOKED_AT // len(asked.tasks)))
    streams = {
        "teacher": [_content(teacher[number]) for number in range(LOOKED_AT)],
        "distil": [_content(distil[number]) for number in range(LOOKED_AT)],
        "validation": [_content(question) for task in chosen_on.tasks for question in chosen_on.questions(task)],
        "evaluation": [_content(question) for task in asked.tasks for question in asked.questions(task)[:LOOKED_AT]],
    }
    owners: dict[object, str] = {}
    for name, contents in streams.items():
        assert len(contents) >= LOOKED_AT
        for content in contents:
            # An easy recall question is a line of text such as "R 2 L 2"; so few letters can come up twice by chance.
            if isinstance(content, bytes):
                assert owners.setdefault(content, name) == name


def _content(conversation: Conversation) -> object:
    """The pictures' pixels; without pictures the text."""
    if not conversation.images:
        return conversation.turns
    return b"".join(image.tobytes() for image in conversation.images)
