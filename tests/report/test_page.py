import re
import shutil
from html.parser import HTMLParser

import pytest

from linearize.errors import RunError
from linearize.report.page import _without_bare_marks, write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Collects what a page refers to and complains about tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read_page(folder):
    html = (folder / "report" / "index.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    return html, outline, " ".join(" ".join(outline.text).split())


@pytest.fixture(scope="module")
def page(reported_run):
    return read_page(reported_run)


def test_the_page_needs_nothing_beside_it(page):
    html, outline, _ = page
    assert outline.references
    assert all(reference.startswith("data:image/") for reference in outline.references)
    assert not {"script", "link", "iframe"} & set(outline.tags)
    assert not re.search(r"url\(|@import", html)


def test_the_page_shows_every_task_stage_chart_and_example(page):
    _, outline, text = page
    for task in ("colour", "count", "spatial", "ocr", "chart", "digit", "album", "recall"):
        assert text.count(task) >= 2
    for stage in ("1 align-new", "2 align-mixer", "3 distill"):
        assert stage in text
    svg = [reference for reference in outline.references if reference.startswith("data:image/svg+xml")]
    pictures = [reference for reference in outline.references if reference.startswith("data:image/webp")]
    assert len(svg) == 4
    # Three examples a task: one image each, three in an album, none for recall.
    assert len(pictures) == 3 * 6 + 9
    assert outline.tags.count("article") == 24


def test_answers_are_shown_as_text_whatever_they_hold(page):
    html, outline, text = page
    assert "<b>blue</b> square" in text
    assert "b" not in outline.tags
    assert "&lt;image&gt;" not in html, "image marks are not part of what a person asks"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("<image>\n<image>\nwhich is red?", "which is red?"),
        ("1 <image>\n2 <image>\nwhich is red?", "1 [image] 2 [image] which is red?"),
        ("<image>what is red?", "what is red?"),
        ("is <image> red?", "is [image] red?"),
        ("no image at all", "no image at all"),
    ],
)
def test_image_marks_are_shown_where_they_say_which_image_is_meant(asked, shown):
    assert _without_bare_marks(asked) == shown


def test_right_and_wrong_answers_differ_by_more_than_colour(page):
    html, _, text = page
    assert 'aria-label="wrong"' in html
    assert "✗ <b>blue</b> square" in text
    assert "✓ red circle" in text


def test_a_report_can_be_made_again_from_the_folder_alone(reported_run, tmp_path):
    moved = tmp_path / "elsewhere" / reported_run.name
    shutil.copytree(reported_run, moved)
    shutil.rmtree(moved / "report")
    write_report(moved)
    for name in ("index.html", "report.md", "retention.png", "sites.png"):
        assert (moved / "report" / name).read_bytes() == (reported_run / "report" / name).read_bytes()


def test_an_unfinished_run_says_what_is_missing(run_folder):
    for path in ("evaluation", "stages/3-distill/done.json", "environment.json"):
        target = run_folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    (run_folder / "recipe.toml").write_text("")
    write_report(run_folder)
    _, outline, text = read_page(run_folder)
    assert "has not been evaluated" in text
    assert "not finished" in text
    assert "no readable recipe" in text
    assert "does not say in which environment" in text
    assert len(outline.references) == 2, "losses and sites are drawn all the same"


def test_a_run_that_has_not_begun_has_a_page_too(tmp_path):
    (tmp_path / "recipe.toml").touch()
    write_report(tmp_path)
    _, outline, text = read_page(tmp_path)
    assert "No stage has started yet" in text
    assert outline.references == []


def test_a_chart_of_an_earlier_report_does_not_outlive_its_content(tmp_path):
    (tmp_path / "recipe.toml").touch()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "retention.png").touch()
    write_report(tmp_path)
    assert not (tmp_path / "report" / "retention.png").exists()


def test_a_lost_example_image_costs_the_image_and_not_the_page(run_folder):
    shutil.rmtree(run_folder / "evaluation" / "images")
    write_report(run_folder)
    _, outline, text = read_page(run_folder)
    assert not any(reference.startswith("data:image/webp") for reference in outline.references)
    assert "What does album ask about" in text


def test_a_report_of_no_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        write_report(tmp_path / "nothing")


def test_a_folder_that_is_no_run_gets_no_report(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"expected the folder of a run, with its recipe\.toml"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
