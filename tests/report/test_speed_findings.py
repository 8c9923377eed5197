"""Where curves cross is found between the lengths that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from speeds import make_bench

from linearize.report.plots import save_chart
from linearize.report.speed import Bench, SpeedCell, SpeedModel
from linearize.report.speed_charts import speed_chart
from linearize.report.speed_findings import crossing, speed_findings


@pytest.mark.parametrize(
    ("points", "begins"),
    [
        ([(100, 0.9), (400, 0.5)], 0.0),
        ([(100, 2.0), (400, 0.5)], 200.0),  # half way, on logarithmic scales
        ([(100, 4.0), (1600, 0.5)], 100 * 16 ** (2 / 3)),
        ([(100, 0.5), (200, 2.0), (800, 0.5)], 400.0),  # the last crossing counts
        ([(100, 0.5), (400, 1.0)], None),
        ([(100, 1.0), (400, 0.5)], 100.0),
        ([], None),
    ],
)
def test_a_crossing_is_where_a_student_begins_to_stay_below(points: list[tuple[int, float]], begins: float) -> None:
    assert crossing(points) == (None if begins is None else pytest.approx(begins))


def test_findings_say_where_and_by_how_much() -> None:
    assert speed_findings(make_bench()) == [
        "eager: student decodes faster than teacher at every length measured; 2.00x as fast at 4,096 tokens",
        "eager: student reads prompts faster than teacher at every length measured; 2.00x as fast at 4,096 tokens",
        # Of the longer prompt there is no cell of the teacher.
        "static: student decodes faster than teacher at every length measured; 2.50x as fast at 1,024 tokens",
        "static: student reads prompts faster than teacher at every length measured; 2.00x as fast at 1,024 tokens",
        "state and cache: student holds less than teacher at every length measured; 50 % of the bytes at 1,024 tokens",
    ]


def test_a_student_that_is_slower_is_said_to_be() -> None:
    models = [SpeedModel("t", "", "", 1), SpeedModel("s", "t", "", 1)]
    cells = [SpeedCell(m, "eager", n, [1.0], [ms], 0.0, held) for n in (10, 1000)
             for m, ms, held in (("t", n / 500, n), ("s", 4.0, 100))]  # fmt: skip
    slower, _, held = speed_findings(Bench(models, cells, {}, {}, ""))
    assert slower == "eager: s does not decode faster than t at the longest prompt; 0.50x as fast at 1,000 tokens"
    assert held == "state and cache: s holds less than t from about 100 tokens on; 10 % of the bytes at 1,000 tokens"


def test_a_chart_has_a_panel_for_what_was_measured(tmp_path: Path) -> None:
    figure = speed_chart(make_bench())
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == [
        "ms per token", "state and cache", "memory", "ms of the prompt", "tokens/s of a batch",
    ]  # fmt: skip
    curves = {line.get_label(): list(line.get_xydata()[:, 1]) for line in figure.axes[0].lines}
    assert curves["student, static"] == [2.0, 2.0]
    assert curves["teacher, static"] == [5.0]  # the cell without memory is left out
    assert save_chart(figure, tmp_path / "x.png").startswith(b"<?xml")
    brief = speed_chart(make_bench(), brief=True)
    assert brief is not None
    assert sum(axes.get_visible() for axes in brief.axes) == 3
    assert speed_chart(Bench([], [], {}, {}, "")) is None
