"""What a run will need is tried on one batch before its first stage, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from linearize_hovle.adapter import HovleAdapter

from linearize.distill import rehearsal
from linearize.distill.objectives import LayerMse, LogitKl, Measured
from linearize.errors import PluginError, RunError
from linearize.files.run_folder import RunFolder
from linearize.protocols import AttentionSite, AttentionWeights

pytestmark = pytest.mark.slow


def trained_steps(cwd: Path) -> list[Path]:
    return sorted((cwd / "runs").rglob("metrics.jsonl"))


def test_an_adapter_that_says_what_is_not_so_is_refused_before_anything_is_trained(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = HovleAdapter.weights

    def wrong(self: HovleAdapter, model: Any, site: AttentionSite) -> AttentionWeights:
        weights = right(self, model, site)
        return dataclasses.replace(weights, scale=1.0) if site.index == 2 else weights

    monkeypatch.setattr(HovleAdapter, "weights", wrong)
    with pytest.raises(PluginError, match=r"^site 2 \("):
        demo.run(monkeypatch, tmp_path)
    assert trained_steps(tmp_path) == []


def test_an_objective_that_never_calls_backward_is_refused_before_the_first_stage(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogitKl, "backward", lambda *_, **__: Measured(1.0))
    with pytest.raises(RunError, match=r"^stage 'distill' \(objective logit_kl\) gave no gradient to any of the \d+"):
        demo.run(monkeypatch, tmp_path)
    assert trained_steps(tmp_path) == []


def test_an_objective_that_fails_in_the_last_stage_costs_no_stage_before_it(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Measured:
        raise IndexError("list index out of range")

    monkeypatch.setattr(LogitKl, "backward", fail)
    with pytest.raises(RunError, match=r"^stage 'distill' .*IndexError: list index out of range"):
        demo.run(monkeypatch, tmp_path)
    assert trained_steps(tmp_path) == []


def test_a_rehearsal_leaves_everything_as_it_was(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    rehearse = rehearsal.rehearse

    def watched(model: torch.nn.Module, accelerator: Accelerator, stages: Any) -> None:
        def state() -> dict[str, Any]:
            tensors = dict(model.named_parameters()) | dict(model.named_buffers())
            return {
                "tensors": {name: one.detach().clone() for name, one in tensors.items()},
                "flags": {name: (one.requires_grad, one.grad) for name, one in model.named_parameters()},
                "training": {name: module.training for name, module in model.named_modules()},
                "random": torch.get_rng_state(),
            }

        before = state()
        rehearse(model, accelerator, stages)
        after = state()
        assert before["flags"] == after["flags"]
        assert before["training"] == after["training"]
        assert torch.equal(before["random"], after["random"])
        assert all(torch.equal(before["tensors"][name], one) for name, one in after["tensors"].items())
        seen.extend(planned.stage.name for planned, *_ in stages)
        raise RunError("enough")

    monkeypatch.setattr("linearize.pipeline.run.rehearse", watched)
    with pytest.raises(RunError, match="enough"):
        demo.run(monkeypatch, tmp_path)
    assert seen == list(demo.stages)


def test_a_run_whose_stages_are_done_proves_and_tries_nothing(
    copy_of_reference: Any, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_reference()
    demo.unfinish(run, stage=4)
    for name in ("prove_teacher", "rehearse"):
        monkeypatch.setattr(f"linearize.pipeline.run.{name}", lambda *_, **__: pytest.fail("nothing is left to train"))
    for objective in (LayerMse, LogitKl):
        monkeypatch.setattr(objective, "backward", lambda *_, **__: pytest.fail("nothing is left to train"))
    demo.run(monkeypatch, run.parents[1])
    assert RunFolder(run).done.exists()
