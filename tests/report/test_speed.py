"""What a bench found, in tables: medians, ranges and ratios to the teacher."""

from __future__ import annotations

import json
from pathlib import Path

from linearize.report.speed import BatchCell, Bench, SpeedCell, SpeedModel, read_bench, speed_tables

GIB = 2**30


def make_bench(*, students: tuple[str, ...] = ("student",)) -> Bench:
    """Two engines, two lengths; the teacher's times grow, and its static cell at the longer length has no memory."""
    models = [
        SpeedModel("teacher", "", "hovle (x)", 5 * GIB),
        *(SpeedModel(s, "teacher", s, 5 * GIB) for s in students),
    ]
    cells = []
    for tokens in (1024, 4096):
        cells.append(SpeedCell("teacher", "eager", tokens, [100, 110, 90], [20, 30, 10], 1.0, 2048 * tokens, 6 * GIB))
        cells[-1].batch = BatchCell(4, "memory", [40.0, 40.0, 40.0], 20 * GIB)
        cells += [
            SpeedCell(student, "eager", tokens, [50.0] * 3, [10.0, 11.0, 9.0], 1.0, 2**20, 5 * GIB,
                      batch=BatchCell(40, "memory", [80.0] * 3, 20 * GIB))
            for student in students
        ]  # fmt: skip
        cells.append(SpeedCell("teacher", "static", tokens, [100.0], [5.0], 1.0, 2048 * tokens, 6 * GIB))
        cells += [SpeedCell(student, "static", tokens, [50.0], [2.0], 1.0, 2**20, 5 * GIB) for student in students]
    cells[-2] = SpeedCell("teacher", "static", 4096, failed="out of memory")
    environment = {"device": "NVIDIA H200", "packages": {"torch": "2.11.0"}, "commit": "abc"}
    return Bench(models, cells, {"rounds": 3, "new_tokens": 16, "dtype": "bfloat16"}, environment, "linearize bench x")


def test_a_row_gives_medians_ranges_and_ratios() -> None:
    alone, batches = speed_tables(make_bench(), "eager")
    assert alone.head == ["tokens", "model", "prefill ms", "ms/token", "range", "faster", "state, cache", "memory"]
    assert alone.rows[:2] == [
        ["1,024", "teacher", "100", "20.0", "10.0–30.0", "–", "2.0 MiB", "6.00 GiB"],
        ["1,024", "student", "50.0", "10.0", "9.00–11.0", "2.00x", "1.0 MiB", "5.00 GiB"],
    ]
    assert batches.head == ["tokens", "model", "rows", "tokens/s", "of teacher's", "ms/token", "range", "memory"]
    assert batches.rows[1][:5] == ["1,024", "student", "40", "500", "5.00x"]


def test_a_static_engine_is_compared_with_both_and_a_teacher_without_memory_with_none() -> None:
    (alone,) = speed_tables(make_bench(), "static")
    assert alone.head[5:7] == ["faster", "than eager"]
    assert alone.rows[1][5:7] == ["2.50x", "10.0x"]
    assert alone.rows[2][2:5] == ["out of memory", "–", "–"]
    assert alone.rows[3][5:7] == ["–", "10.0x"]


def test_a_bench_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bench = make_bench()
    (tmp_path / "bench.json").write_text(json.dumps(bench.as_json()))
    assert read_bench(tmp_path) == bench


def test_what_is_no_bench_of_this_format_reads_as_none(tmp_path: Path) -> None:
    assert read_bench(tmp_path) is None
    for content in ("[1]", "{", json.dumps({**make_bench().as_json(), "format": 2}), '{"format": 1, "cells": 3}'):
        (tmp_path / "bench.json").write_text(content)
        assert read_bench(tmp_path) is None
