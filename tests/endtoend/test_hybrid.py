"""A hybrid, as in the paper: every fourth site keeps its attention, and the layer stages train all mixers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import linearize

pytestmark = pytest.mark.slow

HYBRID = {
    "student.layout": {"type": "every", "keep": 4},
    "stages.align-new.sites": "all",
    "stages.align-mixer.sites": "all",
}
KEPT = {0, 4}
"""The first of every four, which is the layout's default."""


@pytest.fixture(scope="module")
def hybrid(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        run, _ = demo.run(patch, tmp_path_factory.mktemp("hybrid"), HYBRID)
    return Path(run)


def _by_site(demo: Any, run: Path, stage: int) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(demo.weights(run, stage) / "weights.safetensors").items():
        site, _, parameter = name.partition(".")
        found.setdefault(int(site), {})[parameter] = tensor
    return found


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(tensor.equal(other[name]) for name, tensor in one.items())


def test_layer_stages_train_the_mixers_of_kept_sites_as_well_and_the_last_does_not(demo: Any, hybrid: Path) -> None:
    stages = [_by_site(demo, hybrid, number) for number in (1, 2, 3)]
    assert [set(stage) for stage in stages] == [set(range(8))] * 3
    assert {site for site in range(8) if _same(stages[0][site], stages[1][site])} == set()
    assert {site for site in range(8) if _same(stages[1][site], stages[2][site])} == KEPT


def test_layer_stages_know_nothing_of_the_layout(demo: Any, hybrid: Path, reference: Path) -> None:
    """Each site is trained on the teacher's own inputs, so all of them come out as in the linear student's run."""
    for stage in (1, 2):
        ours, linear = (_by_site(demo, run, stage) for run in (hybrid, reference))
        assert all(_same(ours[site], linear[site]) for site in range(8))


def test_kept_sites_are_the_teachers_attention_in_the_saved_student(hybrid: Path) -> None:
    student = linearize.load_student(hybrid / "student")
    saved = load_file(hybrid / "student" / "model.safetensors")
    teacher = linearize.load_teacher("hovle", dtype="float32").model.state_dict()
    paths = [f"embedding_model.layers.{n}.self_attn" for n in range(2)]
    paths += [f"language_model.layers.{n}.self_attn" for n in range(6)]
    for site, path in enumerate(paths):
        [prefix] = {name.partition(path)[0] for name in saved if path in name}
        names = {name.removeprefix(f"{prefix}{path}.") for name in saved if name.startswith(f"{prefix}{path}.")}
        if site in KEPT:
            assert {name.partition(".")[0] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
            for name in names:
                assert torch.equal(saved[f"{prefix}{path}.{name}"], teacher[f"{path}.{name}"]), (site, name)
        else:
            assert {name.partition(".")[0] for name in names} == {"mixer", "o_proj"}
    assert {entry["site"] for entry in student.config.linearize["mixers"]} == set(range(8)) - KEPT


def test_a_hybrid_that_trains_linear_sites_only_has_no_other_mixers(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"student.layout": HYBRID["student.layout"], "evaluate.benchmarks": []}
    run, _ = demo.run(monkeypatch, tmp_path, options)
    assert set(_by_site(demo, run, 3)) == set(range(8)) - KEPT
