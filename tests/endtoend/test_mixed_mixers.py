"""A student with different mixers at different sites: seeded, trained, saved and loaded as each of them is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import linearize

pytestmark = pytest.mark.slow

MIXED = {
    "student.sites": [
        {"sites": "0-1", "mixer": {"type": "sliding_window", "window": 8}},
        {"sites": [7], "mixer": {"conv_width": 0}},
    ],
    "stages.align-new.train": ["decay"],
    "evaluate.benchmarks": [],
}


@pytest.fixture(scope="module")
def mixed(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        run, _ = demo.run(patch, tmp_path_factory.mktemp("mixed"), MIXED)
    return Path(run)


def test_the_saved_student_has_each_sites_own_mixer_and_loads(mixed: Path) -> None:
    entries = json.loads((mixed / "student" / "config.json").read_text(encoding="utf-8"))["linearize"]["mixers"]
    types = [(entry["site"], entry["type"], entry["options"].get("conv_width")) for entry in entries]
    assert types == [
        (0, "sliding_window", None), (1, "sliding_window", None), *((site, "mamba2", 4) for site in range(2, 7)),
        (7, "mamba2", 0),
    ]  # fmt: skip
    student = linearize.load_student(mixed / "student")
    saved = load_file(mixed / "student" / "model.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(student.state_dict()[name], tensor), name


def test_a_stage_trains_the_sites_whose_mixers_have_its_roles(demo: Any, mixed: Path) -> None:
    after_one = load_file(demo.weights(mixed, 1) / "weights.safetensors")
    after_two = load_file(demo.weights(mixed, 2) / "weights.safetensors")
    changed = {name.partition(".")[0] for name, tensor in after_one.items() if not tensor.equal(after_two[name])}
    assert changed == {str(site) for site in range(8)}
    summary = json.loads((mixed / "stages" / "1-align-new" / "done.json").read_text(encoding="utf-8"))
    assert set(summary["sites"]) == {str(site) for site in range(2, 8)}


def test_the_report_names_both_mixers(mixed: Path) -> None:
    page = (mixed / "report" / "index.html").read_text(encoding="utf-8")
    assert "mamba2, sliding_window at sites 0-1, mamba2 at sites 7" in page
