"""Errors as they come from another process, and problems as people read them."""

from __future__ import annotations

import pickle

import pytest

from linearize.errors import DataError, LinearizeError, PluginFault, Problem, RecipeError, UnknownNameError


@pytest.mark.parametrize(
    "error",
    [
        DataError("there is none", option="path", found="x"),
        RecipeError("a.toml", [Problem("run.seed", "is required", code="missing")]),
        UnknownNameError("mixer", "glaa", ["gla"]),
        PluginFault("layout 'odd'", "KeyError: 'x'", "odd.py, line 3"),
    ],
)
def test_an_error_is_the_same_in_another_process(error: LinearizeError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


def test_a_problem_reads_with_the_recipe_that_has_it_its_path_and_its_text() -> None:
    problem = Problem("run.seed", "is required", scope="cell 'a'")
    assert str(problem) == "cell 'a': run.seed: is required"
    assert str(Problem("", "cannot be read")) == "cannot be read"
