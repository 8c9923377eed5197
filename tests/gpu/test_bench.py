"""On a CUDA device a bench measures memory, replays graphs, and finds its largest batch by memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkout import FIXTURES

from linearize import api
from linearize.inference import bench as bench_module
from linearize.inference.options import BenchOptions
from linearize.report.speed import BY_MEMORY, BY_OPTION

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: a CPU has no graphs to replay"),
]
TARGETS = (
    f"hovle:{FIXTURES / 'run_folder' / 'teacher'}",
    str(FIXTURES / "saved_students" / "hovle_linear" / "student"),
)
OPTIONS = BenchOptions(lengths=(32, 64), new_tokens=8, rounds=2, max_rows=4, device="cuda")


def test_every_cell_is_measured_with_its_memory(tmp_path: Path) -> None:
    found = api.bench(TARGETS, OPTIONS, out=tmp_path).bench
    assert found.failures() == []
    assert len(found.cells) == 8
    for cell in found.cells:
        assert cell.batch is not None
        assert cell.peak_bytes > found.model(cell.model).weight_bytes
        assert (cell.batch.rows, cell.batch.limited_by, len(cell.batch.token_ms)) == (4, BY_OPTION, 2)
        assert cell.batch.peak_bytes > found.model(cell.model).weight_bytes


def test_the_largest_batch_is_the_one_that_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "room_for_rows", lambda *_: 3)
    options = BenchOptions(lengths=(32,), new_tokens=8, rounds=1, engines=("static",), device="cuda")
    found = api.bench(TARGETS[:1], options, out=tmp_path).bench
    assert [(cell.batch.rows, cell.batch.limited_by) for cell in found.cells if cell.batch] == [(3, BY_MEMORY)]
