"""A stage of no steps is left out; without any stage a run gives the seeded student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import linearize
from linearize import api
from linearize.distill.seeding import seed_student
from linearize.student.convert import linearized_sites

pytestmark = pytest.mark.slow


def test_a_run_of_no_steps_saves_the_seeded_student(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {**{f"stages.{name}.steps": 0 for name in demo.stages}, "evaluate.benchmarks": []}
    run, _ = demo.run(monkeypatch, tmp_path, overrides)
    assert not (run / "stages").exists()
    checked = api.check(demo.recipe, {**demo.tiny, **overrides})
    model = checked.adapter.load(dtype=torch.float32, device="cpu")
    seed_student(model, checked.adapter, checked.recipe, checked.plan, torch.device("cpu"))
    saved = linearize.load_student(run / "student")
    seeded, trained = (
        {f"{slot.site.index}.{name}": tensor for slot in linearized_sites(one) if slot.mixer is not None
         for name, tensor in slot.mixer.named_parameters()}
        for one in (model, saved)
    )  # fmt: skip
    assert seeded.keys() == trained.keys()
    for name, tensor in seeded.items():
        assert torch.equal(tensor, trained[name]), name
