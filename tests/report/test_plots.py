import pytest

from linearize.report import plots
from linearize.report.records import StageRecord, read_run
from linearize.report.results import build_results


@pytest.fixture
def run(run_folder):
    return read_run(run_folder)


def charts_of(run):
    results = build_results(run)
    return {
        "loss": plots.loss_chart(run.stages), "sites": plots.site_chart(run.stages),
        "retention": plots.retention_chart(results["tasks"]), "dials": plots.dial_chart(results["dials"]),
    }  # fmt: skip


def tick_labels(axes):
    """The labels within the axes' limits; matplotlib keeps others that it does not draw."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)


def test_no_two_texts_of_a_chart_overlap(run):
    for name, figure in charts_of(run).items():
        plots.FigureCanvasAgg(figure).draw()
        renderer = figure.canvas.get_renderer()
        boxes = [
            (text.get_text(), text.get_window_extent(renderer).padded(-1))
            for axes in figure.axes
            for text in [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label, *tick_labels(axes)]
            if text.get_text() and text.get_visible()
        ]
        assert len(boxes) > 5
        for index, (text, box) in enumerate(boxes):
            for other, other_box in boxes[index + 1 :]:
                assert not box.overlaps(other_box), f"{name}: '{text}' lies over '{other}'"


def test_equal_runs_have_equal_charts(run, tmp_path):
    first, second = (plots.save_chart(charts_of(run)["retention"], tmp_path / f"{n}.png") for n in (1, 2))
    assert first == second
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_retention_bars_are_the_shares_and_whiskers_their_intervals(run):
    tasks = build_results(run)["tasks"]
    left = charts_of(run)["retention"].axes[0]
    teacher, student = [container for container in left.containers if hasattr(container, "patches")]
    assert [bar.get_width() for bar in teacher] == [task["teacher"] for task in tasks.values()]
    assert [bar.get_width() for bar in student] == [task["student"] for task in tasks.values()]
    ends = [tuple(line[:, 0]) for line in student.errorbar.lines[2][0].get_segments()]
    for (low, high), task in zip(ends, tasks.values(), strict=True):
        assert (low, high) == pytest.approx(tuple(task["student_interval"]))


def test_a_chart_copes_with_a_teacher_that_is_never_right_and_a_student_that_keeps_nothing(tmp_path):
    nothing = {"teacher": 0.0, "student": 0.0, "retention": None, "questions": 5}
    lost = {"teacher": 1.0, "student": 0.0, "retention": 0.0, "questions": 5}
    figure = plots.retention_chart({"never": nothing, "lost": lost})
    assert plots.save_chart(figure, tmp_path / "chart.png").startswith(b"<?xml")


def test_a_chart_without_content_is_not_drawn():
    empty = StageRecord(number=1, name="empty", done=None, metrics=[])
    assert plots.loss_chart([empty]) is None
    assert plots.site_chart([empty]) is None
    assert plots.retention_chart({}) is None
    assert plots.dial_chart({"ocr": []}) is None


def test_a_stage_with_one_logged_step_is_drawn(tmp_path):
    stage = StageRecord(1, "one", None, [{"step": 1, "loss": 2.0, "sites": {"0": 0.7, "5": 0.9}}])
    for figure in (plots.loss_chart([stage]), plots.site_chart([stage])):
        assert plots.save_chart(figure, tmp_path / "chart.png")


def test_long_curves_are_averaged_to_a_few_hundred_points_of_the_same_mean():
    points = [(step, float(step % 7)) for step in range(1, 7 * 2000 + 1)]
    thinned = plots.thinned(points)
    assert 200 < len(thinned) <= plots.MOST_POINTS
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(3.0, abs=0.01)


def test_a_diverging_site_does_not_bleach_the_scale_of_the_others():
    metrics = [{"step": step, "loss": 1.0, "sites": {"0": 0.5, "1": 40.0}} for step in (10, 20)]
    figure = plots.site_chart([StageRecord(1, "wild", None, metrics)])
    assert figure.axes[0].collections[0].get_clim() == (0, plots.MOST_ERROR)
