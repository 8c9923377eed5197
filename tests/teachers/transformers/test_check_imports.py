"""What `linearize check` imports for a teacher of the transformers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import tomli_w
from checkout import imported_by

HEAVY = {
    "accelerate", "datasets", "matplotlib", "pandas", "scipy", "torchvision", "triton", "fla", "mamba_ssm",
    "linearize.distill.loop", "linearize.pipeline.run", "torch._dynamo.eval_frame", "torch._inductor", "sympy",
}  # fmt: skip


def test_a_check_imports_the_code_of_its_own_model_and_nothing_that_trains(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "that"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": turns}]), encoding="utf-8")
    recipe = {
        "run": {"name": "small"},
        "teacher": {"type": "transformers", "checkpoint": str(checkpoint("llama"))},
        "student": {"mixer": {"type": "mamba2"}},
        "data": {"type": "llava_json", "path": str(tmp_path / "data.json")},
        "stages": [{"name": "all", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 1, "lr": 1e-3}],
    }
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    imported = imported_by("check", "recipe.toml", cwd=tmp_path)
    models = {
        name.split(".")[2] for name in imported if name.startswith("transformers.models.") and "modeling_" in name
    }
    assert models == {"auto", "llama"}
    assert imported & HEAVY == set()
