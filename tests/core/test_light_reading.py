"""`linearize check` and `plan` import little: nothing that trains or draws, and no model that was not asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
import transformers
from checkout import imported_by, python
from packaging.version import Version

from linearize.cli.light import only_reads

HEAVY = {
    "accelerate", "datasets", "matplotlib", "pandas", "scipy", "torchvision", "triton", "fla", "mamba_ssm",
    "linearize.distill.loop", "linearize.pipeline.run",
}  # fmt: skip
MODEL_CODE = {
    "torch._dynamo.eval_frame", "torch._inductor", "sympy",
    "transformers.modeling_utils", "transformers.processing_utils",
}  # fmt: skip
"""What every model of transformers imports; a teacher that tells its sites from its configuration needs none of it."""


@pytest.fixture
def recipe(tables: dict[str, object], write: Callable[[str, str], Path]) -> Path:
    return write("recipe.toml", tomli_w.dumps(tables))


def test_checking_a_teacher_that_is_known_from_its_configuration_needs_no_model_code(
    recipe: Path, tmp_path: Path
) -> None:
    imported = imported_by("check", str(recipe), cwd=tmp_path)
    assert "torch" in imported
    assert imported & HEAVY == set()
    if Version(transformers.__version__) >= Version("5.23"):  # older ones import the compiler with a configuration
        assert imported & MODEL_CODE == set()


def test_planning_imports_nothing_that_trains_or_draws(recipe: Path, tmp_path: Path) -> None:
    embedded = ("--set", "teacher.checkpoint=embedded")  # has a tokenizer
    assert imported_by("plan", str(recipe), *embedded, cwd=tmp_path) & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "reads"),
    [
        (["check", "a.toml"], True),
        (["plan", "a.toml"], True),
        (["compare", "a.toml", "--dry-run"], True),
        (["compare", "a.toml"], False),
        (["check", "--help"], False),
        (["run", "a.toml"], False),
        (["--version"], False),
        ([], False),
    ],
)
def test_commands_that_compute_keep_all_that_is_installed(arguments: list[str], reads: bool) -> None:
    assert only_reads(arguments) == reads


def test_what_a_reading_process_leaves_out_plug_ins_can_import(tmp_path: Path) -> None:
    code = """
from linearize.cli.light import leave_out_what_only_runs_need
leave_out_what_only_runs_need()
import accelerate, torch.distributed
assert torch.distributed.is_available()
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_reading_process_compiles_all_the_same_and_keeps_what_was_said_of_functions_before(tmp_path: Path) -> None:
    code = """
import sys
from linearize.cli.first_use import put_off_the_compiler
put_off_the_compiler()
import torch
import torch._dynamo._trace_wrapped_higher_order_op

traced = []

@torch.compiler.disable
def left_out(x):
    traced.append("left out" if torch.compiler.is_compiling() else "called")
    return x + 1

@torch.compiler.disable(recursive=False)
def left_out_too(x):
    return x + 1

@torch._dynamo.allow_in_graph
def in_graph(x):
    return x * 2

@torch._dynamo.assume_constant_result
def three():
    return 3

assert left_out(torch.ones(2)).tolist() == [2, 2]
assert left_out_too(torch.ones(2)).tolist() == [2, 2]
assert "torch._dynamo.eval_frame" not in sys.modules

graphs = []

def backend(graph, inputs):
    graphs.append([node.target for node in graph.graph.nodes])
    return graph.forward

def f(x):
    return in_graph(left_out_too(left_out(x + 1) * three()))

assert torch.compile(f, backend=backend)(torch.ones(2)).tolist() == [20, 20]
assert "torch._dynamo.eval_frame" in sys.modules
assert traced == ["called", "called"], traced
assert len(graphs) == 3, graphs
assert any(in_graph in graph for graph in graphs), graphs
assert torch._dynamo.list_backends() == sys.modules["torch._dynamo"].list_backends()
assert torch.compiler.disable(len)([1]) == 1
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
