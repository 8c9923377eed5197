"""The table says what the findings say, in every form, and the page needs nothing beside it."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from speeds import make_bench

from linearize.comparison import charts, table
from linearize.comparison.findings import CellFinding, ComparisonResult
from linearize.comparison.page import render_page, write_report
from linearize.report import plots
from linearize.wording import percent

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """What a page refers to, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def report(comparison: ComparisonResult) -> Path:
    """The written report's folder."""
    return write_report(comparison).parent


def printed(result: ComparisonResult, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table.terminal_table(result, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_page_needs_nothing_beside_it_and_shows_everything(comparison: ComparisonResult, report: Path) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert len(outline.references) == 3
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in outline.references)
    assert not {"script", "link", "iframe"} & set(outline.tags)
    assert not re.search(r"url\(|@import|https?://", html)
    text = " ".join(" ".join(outline.text).split())
    for line in table.comparison_lines(comparison):
        for entry in line.entries:
            assert f"{entry.text} {entry.remark}".strip() in text
    assert "training diverged: <nan>" in text, "failures are text, whatever they hold"
    assert 'student.mixer.type = "mamba2"' in text


def test_bold_is_what_no_other_cell_beats_by_more_than_noise(comparison: ComparisonResult) -> None:
    lines = {line.name: [entry.is_best for entry in line.cells] for line in table.comparison_lines(comparison)}
    assert lines["ocr"] == [True, True, True]
    assert lines["recall"] == lines["average"] == [True, True, False]
    assert not any(lines["decode ms/token"])


def test_the_verdict_tells_noise_from_differences(comparison: ComparisonResult) -> None:
    best, near = (cell.name for cell in comparison.ranked()[:2])
    assert table.headline(comparison).endswith(f"Within noise of it: {near}.")
    first, second = table.verdicts(comparison)
    assert first.startswith(f"{near} and {best}: within noise (")
    assert second.startswith(f"retnet keeps less than {best} (+")


def test_a_branch_that_a_student_does_not_need_is_told_wherever_the_comparison_is(
    comparison: ComparisonResult,
) -> None:
    text = "seed 1: the student ignores its linear branch"
    cells = (replace(comparison.cells[0], warnings=(text,)), *comparison.cells[1:])
    warned = replace(comparison, cells=cells)
    line = f"warning: {cells[0].name}, {text}"
    for shown in (printed(warned, 200), table.markdown(warned, {}), render_page(warned, {})):
        assert line in shown
    assert "warning" not in printed(comparison, 200)


def test_one_seed_is_said_to_know_nothing_of_others(comparison: ComparisonResult) -> None:
    assert "the paired t-test's" in table.how_tested(comparison)
    alone = replace(comparison, differences=tuple(replace(pair, seeds=1) for pair in comparison.differences))
    assert "nothing is known of how much another seed would change" in table.how_tested(alone)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_terminals_table_keeps_to_its_width_and_leaves_no_cell_out(
    comparison: ComparisonResult, width: int
) -> None:
    text = printed(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    for cell in comparison.cells:
        assert cell.name in text
    assert text.count("decode ms/token") == {60: 3, 80: 2, 100: 1, 200: 1}[width]


def test_markdown_and_csv_hold_the_numbers_of_the_findings(comparison: ComparisonResult) -> None:
    text = table.markdown(comparison, {"costs.png": "costs"})
    for block in table.blocks(comparison):
        part = text.split(f"## {block.title}\n")[1].split("\n## ")[0]
        rows = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
        names = [row[0] for row in rows[2:]]
        assert names == ["teacher", *(cell.name for cell in comparison.ranked())]
        assert {len(row) for row in rows} == {1 + len(block.heads)}
        best = comparison.ranked()[0]
        assert best.average is not None
    assert f"**{percent(best.average.value)}**" in text.split("## What it costs")[0]
    assert "![costs](costs.png)" in text
    assert "failed: lost, seed 0: training diverged: <nan>" in text
    teacher, *rows = csv.DictReader(io.StringIO(table.comma_separated(comparison)))
    assert (teacher["cell"], float(teacher["cache_bytes_per_token"])) == ("teacher", 4096)
    assert [row["cell"] for row in rows] == [cell.name for cell in comparison.cells]
    for row, cell in zip(rows, comparison.cells, strict=True):
        assert cell.average is not None
        assert float(row["average_retention"]) == cell.average.value
        assert float(row["recall_low"]) == cell.tasks["recall"].interval[0]  # type: ignore[union-attr]
        assert float(row["decode_ms_per_token"]) == cell.decode_ms
        assert float(row["training_tokens_per_second"]) == pytest.approx(1e6 / cell.training_seconds)  # type: ignore[operator]
        assert row["training_runs_at_once"] == str(comparison.jobs)
    assert [row["within_noise_of_best"] for row in rows] == ["True", "True", "False"]


def test_the_numbers_for_programs_can_be_read_back(comparison: ComparisonResult, report: Path) -> None:
    found = json.loads((report / "compare.json").read_text(encoding="utf-8"))
    assert found["cells"][2]["average"]["value"] == comparison.cells[2].average.value  # type: ignore[union-attr]
    assert found["failures"][0]["text"] == "training diverged: <nan>"
    assert {path.name for path in report.iterdir()} == {
        "index.html", "compare.md", "compare.csv", "compare.json", "costs.png", "difficulty.png", "losses.png",
    }  # fmt: skip


def test_a_comparison_in_which_every_run_failed_has_a_page_too(comparison: ComparisonResult, tmp_path: Path) -> None:
    nothing = replace(
        comparison, folder=tmp_path, cells=(), tasks=(), teacher=None, differences=(), questions={}, environment={}
    )
    html = write_report(nothing).read_text(encoding="utf-8")
    assert "No run has reached its end." in html
    assert "training diverged" in html
    assert "failed: lost, seed 0" in printed(nothing, 120)
    assert table.comma_separated(nothing) == "cell\n"


def test_no_two_texts_of_a_chart_overlap(comparison: ComparisonResult) -> None:
    for draw in (charts.cost_chart, charts.difficulty_chart, charts.loss_chart):
        figure = draw(comparison)
        assert figure is not None
        plots.FigureCanvasAgg(figure).draw()
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        boxes = [
            (text.get_text(), text.get_window_extent(renderer).padded(-1))
            for axes in figure.axes
            for text in (axes._left_title, axes.xaxis.label, axes.yaxis.label)  # type: ignore[attr-defined]
            if text.get_text()
        ]
        assert len(boxes) >= 3
        for index, (text, box) in enumerate(boxes):
            for other, other_box in boxes[index + 1 :]:
                assert not box.overlaps(other_box), f"'{text}' lies over '{other}'"


def test_every_cell_of_a_chart_has_its_own_colour_mark_and_line(comparison: ComparisonResult) -> None:
    cell = comparison.cells[0]
    many = [replace(cell, changes=(("student.mixer.conv_width", number),)) for number in range(24)]
    assert len({(look.colour, look.mark, look.line) for look in charts.looks(many)}) == 24


def test_no_measure_is_lost_between_the_terminals_table_and_the_blocks(comparison: ComparisonResult) -> None:
    heads = [head for block in table.blocks(comparison) for head in block.heads]
    assert sorted(heads) == sorted(line.name for line in table.comparison_lines(comparison))


def test_one_mixer_has_one_colour_where_layouts_are_varied_too(comparison: ComparisonResult) -> None:
    cell = comparison.cells[0]
    changes = [
        (*layout, ("student.mixer.type", mixer))
        for layout in ((("student.layout.type", "all"),), (("student.layout.type", "every"),))
        for mixer in ("mamba2", "gla", "kda")
    ]
    found = charts.looks([replace(cell, changes=each) for each in changes])
    assert [look.colour for look in found[:3]] == [look.colour for look in found[3:]]
    assert len({look.colour for look in found}) == 3
    assert len({(look.colour, look.mark, look.line) for look in found}) == 6
    assert [look.is_hollow for look in found] == [False] * 3 + [True] * 3


def test_a_comparison_that_was_benched_shows_it(comparison: ComparisonResult, tmp_path: Path) -> None:
    benched = replace(comparison, folder=tmp_path)
    assert "What linear time buys" not in write_report(benched).read_text()
    (tmp_path / "bench").mkdir()
    students = tuple(cell.name for cell in comparison.cells)
    (tmp_path / "bench" / "bench.json").write_text(json.dumps(make_bench(students=students).as_json()))
    page = write_report(benched).read_text()
    assert page.count("What linear time buys") == 1
    assert all(f"static: {name} decodes faster than teacher" in page for name in students)


def test_steps_are_told_and_what_equal_time_made_of_them(comparison: ComparisonResult) -> None:
    def trained(cell: CellFinding, steps: int) -> CellFinding:
        stages = [replace(stage, done={"steps": steps}) for stage in cell.stages[0]]
        return replace(cell, stages=[stages])

    alike = replace(comparison, cells=tuple(trained(cell, 7) for cell in comparison.cells))
    assert table.steps_lines(alike) == ["Optimizer steps of all cells: align 7, distill 7."]
    cells = tuple(trained(cell, 3 + (cell.name == "gla")) for cell in comparison.cells)
    timed = replace(comparison, cells=cells, seconds=20.0)
    slower, faster, told = table.steps_lines(timed)
    assert slower == "Optimizer steps of mamba2, retnet: align 3, distill 3."
    assert faster == "Optimizer steps of gla: align 4, distill 4."
    assert "fill 20.0 s" in told
    for text in (slower, faster, told):
        assert text in table.markdown(timed, {})
        assert text in render_page(timed, {})


def test_a_key_that_is_changed_twice_is_shown_as_it_is_in_the_end() -> None:
    assert table.shown_changes((("conv", 4), ("rope", True), ("conv", 0))) == "conv = 0, rope = true"
