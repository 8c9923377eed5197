"""What a bench found, in tables: medians, ranges and ratios to the teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from speeds import make_bench

from linearize.report.speed import machine, read_bench, speed_tables


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


def test_a_cpu_is_told_with_its_threads_as_far_as_they_are_known() -> None:
    cpu = {"device": "cpu", "processor": "AMD EPYC"}
    told = [machine(replace(make_bench(), environment=cpu | more)) for more in ({"threads": 1}, {"threads": 2}, {})]
    assert told == ["AMD EPYC, bfloat16, 1 thread", "AMD EPYC, bfloat16, 2 threads", "AMD EPYC, bfloat16"]
