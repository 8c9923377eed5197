"""A bench without a machine, for what is made of its results."""

from __future__ import annotations

from linearize.report.speed import BatchCell, Bench, SpeedCell, SpeedModel

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
