"""A bench measures every model alike, keeps what is finished, and goes on behind cells that fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import FIXTURES, TINY_TEACHER

from linearize import api
from linearize.errors import LinearizeError, RunError
from linearize.files.run_folder import RunFolder
from linearize.inference import bench as bench_module
from linearize.inference import measure
from linearize.inference.bench import run_bench, unfinished
from linearize.inference.engines import empty_cache
from linearize.inference.measure import Answer, Way, answer, answer_in_rows, fill, prompt_ids
from linearize.inference.options import BenchOptions
from linearize.inference.results import bench_folder
from linearize.inference.subjects import Subject, find_subjects
from linearize.plugin.discovery import Plugins
from linearize.report.speed import OUT_OF_MEMORY, read_bench, speed_tables
from linearize.student.state import passed_cache

STUDENT = FIXTURES / "saved_students" / "hovle_linear" / "student"
HYBRID = FIXTURES / "saved_students" / "smolvlm_hybrid" / "student"
TEACHER = f"hovle:{FIXTURES / 'run_folder' / 'teacher'}"
SHORT = BenchOptions(lengths=(4, 9), new_tokens=5, rounds=2, max_rows=3, device="cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("bench")
    return folder, api.bench([TEACHER, str(STUDENT)], SHORT, out=folder).bench


def test_every_model_is_measured_under_every_engine_at_every_length(measured: tuple[Path, Any]) -> None:
    folder, found = measured
    assert [(model.name, model.teacher) for model in found.models] == [("teacher", ""), ("student", "teacher")]
    places = {(cell.model, cell.engine, cell.tokens) for cell in found.cells}
    assert places == {(m, e, t) for m in ("teacher", "student") for e in ("eager", "static") for t in (4, 9)}
    for cell in found.cells:
        assert (cell.failed, len(cell.token_ms), len(cell.first_ms)) == ("", 2, 2)
        assert min(*cell.token_ms, *cell.first_ms) > 0
        assert cell.batch is not None
        assert (cell.batch.rows, cell.batch.limited_by, len(cell.batch.token_ms)) == (3, "option", 2)
    content = json.loads((folder / "bench.json").read_text())
    assert content["format"] == 1
    assert content["environment"]["packages"]["torch"]
    assert content["settings"]["dtype"] == "float32"
    assert read_bench(folder) == found


def test_a_cache_grows_with_the_prompt_and_a_state_does_not(measured: tuple[Path, Any]) -> None:
    _, found = measured
    for engine in ("eager", "static"):
        teacher, student = (
            [found.cell(name, engine, t).cache_bytes for t in (4, 9)] for name in ("teacher", "student")
        )
        # Keys and values of every token but the last one, which no step has read; a static cache has a count besides.
        assert teacher[1] * (4 + 5 - 1) == pytest.approx(teacher[0] * (9 + 5 - 1), rel=0.02)
        assert student[0] == student[1] > 0


def test_what_is_finished_is_not_measured_again(measured: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = measured
    monkeypatch.setattr(bench_module, "answer", lambda *_, **__: pytest.fail("measured again"))
    again = api.bench([TEACHER, str(STUDENT)], SHORT, out=folder).bench
    assert again.cells == found.cells
    assert again.models == found.models


def fake_subjects(*names: str) -> list[Subject]:
    """Models that are never run."""
    return [
        Subject(name, name, "" if name == "teacher" else "teacher", {"of": name}, lambda *_: torch.nn.Linear(1, 1))
        for name in names
    ]


def fake_answers(monkeypatch: pytest.MonkeyPatch, order: list[str], out_of_memory: Sequence[str] = ()) -> None:
    def answer(model: Any, way: Way, ids: str, returns_cache: bool) -> Answer:
        order.append(f"{way.engine}:{ids}")
        if f"{way.engine}:{ids}" in out_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")
        return Answer(2.0, 1.0, 8)

    monkeypatch.setattr(bench_module, "prompt_ids", lambda model, tokens: str(tokens))
    monkeypatch.setattr(bench_module, "answer", answer)


def test_rounds_are_interleaved_and_lengths_ascend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fake_answers(monkeypatch, order)
    options = replace(SHORT, lengths=(9, 4), max_rows=0).resolved()
    run_bench(fake_subjects("teacher", "student"), options, tmp_path)
    one_round = ["eager:4", "eager:4", "static:4", "static:4"]
    assert order[:12] == one_round * 3  # to warm up, and two that count
    assert order[12:] == [text.replace("4", "9") for text in one_round * 3]


def test_a_cell_without_memory_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fake_answers(monkeypatch, order, out_of_memory=["eager:9"])
    options = replace(SHORT, max_rows=0).resolved()
    found, _ = run_bench(fake_subjects("teacher"), options, tmp_path)
    assert {(cell.engine, cell.tokens): cell.failed for cell in found.cells} == {
        ("eager", 4): "", ("static", 4): "", ("eager", 9): OUT_OF_MEMORY, ("static", 9): "",
    }  # fmt: skip
    assert order.count("eager:9") == 1  # is not tried in every round
    assert unfinished(found, fake_subjects("teacher"), options) == []


def test_a_batch_that_does_not_fit_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_answers(monkeypatch, [])
    tried: list[int] = []

    def answer_in_rows(model: Any, way: Way, ids: str, rows: int) -> Answer:
        tried.append(rows)
        if rows > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Answer(2.0, 4.0, 8)

    monkeypatch.setattr(bench_module, "answer_in_rows", answer_in_rows)
    options = replace(SHORT, lengths=(4,), engines=("eager",), max_rows=10).resolved()
    found, _ = run_bench(fake_subjects("teacher"), options, tmp_path)
    batch = found.cells[0].batch
    assert tried == [10, 8, 6, 6, 6]
    assert (batch.rows, batch.limited_by, batch.token_ms, batch.failed) == (6, "memory", [4.0, 4.0], "")
    assert batch.tokens_per_second == 1500


def test_cells_are_skipped_by_name_and_a_name_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_answers(monkeypatch, [])
    subjects = fake_subjects("teacher", "student")
    options = replace(SHORT, max_rows=0, skip=("teacher:static", "student:eager:9")).resolved()
    found, _ = run_bench(subjects, options, tmp_path)
    assert [(cell.model, cell.engine, cell.tokens) for cell in found.cells] == [
        ("teacher", "eager", 4), ("student", "eager", 4), ("student", "static", 4),
        ("teacher", "eager", 9), ("student", "static", 9),
    ]  # fmt: skip
    with pytest.raises(RunError, match=r"skip: .* got 'teacher:statik'\. Models: teacher, student; engines: eager"):
        run_bench(subjects, replace(options, skip=("teacher:statik",)), tmp_path)


class Hours:
    """A clock on which every answer takes one hour."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    def monotonic(self) -> float:
        return 3600.0 * len(self.order)


def test_when_the_time_is_up_the_same_bench_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fake_answers(monkeypatch, order)
    monkeypatch.setattr(bench_module, "time", Hours(order))
    subjects, options = fake_subjects("teacher"), replace(SHORT, max_rows=0, minutes=5.5 * 60).resolved()
    found, _ = run_bench(subjects, options, tmp_path)
    assert order == ["eager:4", "static:4"] * 3  # the second length is not begun after six
    assert unfinished(found, subjects, options) == ["teacher:eager:9", "teacher:static:9"]
    monkeypatch.undo()
    fake_answers(monkeypatch, order := [])
    found, _ = run_bench(subjects, replace(options, minutes=None), tmp_path)
    assert set(order) == {"eager:9", "static:9"}
    assert unfinished(found, subjects, options) == []


def test_a_group_that_the_time_cuts_short_keeps_whole_rounds_and_none_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fake_answers(monkeypatch, order)
    monkeypatch.setattr(bench_module, "time", Hours(order))
    subjects, options = fake_subjects("teacher"), replace(SHORT, lengths=(4,), rounds=3, max_rows=0).resolved()
    found, _ = run_bench(subjects, replace(options, minutes=3.5 * 60), tmp_path / "one")
    assert [len(cell.token_ms) for cell in found.cells] == [1, 1]
    order.clear()
    found, _ = run_bench(subjects, replace(options, minutes=0.5 * 60), tmp_path / "none")
    assert (found.cells, order) == ([], ["eager:4"])


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_batch_that_fits_no_more_goes_on_with_fewer_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    fake_answers(monkeypatch, [])
    tried: list[int] = []

    def answer_in_rows(model: Any, way: Way, ids: str, rows: int) -> Answer:
        tried.append(rows)
        if rows > 6 and len(tried) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Answer(2.0, 4.0, 8)

    class PeakByRow:
        def __init__(self, device: Any) -> None:
            del device

        def bytes(self, model: Any) -> int:
            return tried[-1] if tried else 0

    monkeypatch.setattr(bench_module, "answer_in_rows", answer_in_rows)
    monkeypatch.setattr(bench_module, "Peak", PeakByRow)
    options = replace(SHORT, lengths=(4,), engines=("eager",), rounds=rounds, max_rows=8).resolved()
    found, _ = run_bench(fake_subjects("teacher"), options, tmp_path)
    times = [4.0] * (rounds - 1)  # the last round too, where the first 6 rows only warm up
    assert tried == [8, 8, 8, 6, *[6 for _ in times]]
    batch = found.cells[0].batch
    assert (batch.rows, batch.limited_by, batch.token_ms, batch.failed) == (6, "memory", times, "")
    assert batch.peak_bytes == 6  # not that of the 8 rows that are no longer reported


def test_a_bench_of_other_settings_is_kept_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_answers(monkeypatch, [])
    options = replace(SHORT, max_rows=0).resolved()
    before, _ = run_bench(fake_subjects("teacher"), options, tmp_path)
    found, kept = run_bench(fake_subjects("teacher"), replace(options, rounds=1), tmp_path)
    assert kept == tmp_path / "bench.old-1.json"
    assert json.loads(kept.read_text()) == before.as_json()
    assert all(len(cell.token_ms) == 1 for cell in found.cells)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engines": ("statik",)}, r"engines: expected some of eager, static; got statik\. Did you mean 'static'"),
        ({"engines": ()}, "engines: expected some of eager, static; got none"),
        ({"lengths": (0, 5)}, "lengths: expected numbers of tokens from 1 on; got 0"),
        ({"new_tokens": 4}, "new tokens: expected 5 or more, since the first ones are not timed; got 4"),
        ({"dtype": "float16"}, "dtype: expected float32 or bfloat16; got float16"),
        ({"device": "tpu"}, "device: expected cpu.*; got tpu"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_loaded(
    options: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "run_bench", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RunError, match=text):
        api.bench([TEACHER], BenchOptions(**options), out=tmp_path)


def model_of(target: str) -> Any:
    (subject,) = find_subjects([target], Plugins.discover())
    return subject.load(torch.float32, "cpu")


@pytest.mark.parametrize("target", [TEACHER, str(STUDENT), str(HYBRID)])
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_rows_that_were_copied_go_on_as_rows_that_were_read(target: str, engine: str) -> None:
    model = model_of(target)
    ids_1T = prompt_ids(model, 7)
    config = Way("eager", 1).config(model, returns_cache=True)
    read = model.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config)
    cache, row = empty_cache(model, engine, 3, 20), passed_cache(read)
    fill(cache, row, 3)
    assert int(cache.get_seq_length()) == 7
    config = Way(engine, 6).config(model, returns_cache=True)
    config.cache_implementation = None
    next_B1 = read.sequences[:, -1:].repeat(3, 1)
    name = "cache" if "cache" in read else "past_key_values"
    on = model.generate(
        input_ids=next_B1, attention_mask=torch.ones(3, 8, dtype=torch.long), generation_config=config, **{name: cache}
    )
    config = Way("eager", 7).config(model, returns_cache=True)
    whole = model.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config)
    assert on.sequences[:, 1:].tolist() == [whole.sequences[0, 8:].tolist()] * 3
    assert answer_in_rows(model, Way(engine, 6), ids_1T, 3).token_ms > 0


def test_the_device_is_waited_for_at_three_tokens_of_an_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, waits = model_of(TEACHER), []
    monkeypatch.setattr(measure, "wait_for", lambda device: waits.append(device))
    found = answer(model, Way("eager", 9), prompt_ids(model, 4))
    assert len(waits) == 1 + 3  # before it begins; the first token, the last one that is not timed, and the last
    assert found.cache_bytes == 0
    assert answer(model, Way("eager", 9), prompt_ids(model, 4), returns_cache=True).cache_bytes > 0


def test_a_token_takes_the_time_of_those_that_are_timed_over_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clockwork:
        ticks = iter([0.0, 5.0, 6.0, 10.0])

        def perf_counter(self) -> float:
            return next(self.ticks)

    model = model_of(TEACHER)
    monkeypatch.setattr(measure, "time", Clockwork())
    found = answer(model, Way("eager", 12), prompt_ids(model, 4))
    assert (found.first_ms, found.token_ms) == (5000.0, 500.0)  # eight tokens behind the fourth


def test_prompts_hold_no_token_that_stands_for_something_else() -> None:
    model = model_of(TEACHER)
    ids = prompt_ids(model, 4096)
    assert ids.shape == (1, 4096)
    assert int(ids.max()) < model.config.language.vocab_size
    special = {model.config.image_token_id, model.config.language.eos_token_id, model.config.language.bos_token_id}
    assert not special & set(ids[0].tolist())


def test_targets_are_named_by_what_they_are(tmp_path: Path) -> None:
    both = find_subjects([str(STUDENT), str(HYBRID), TEACHER], Plugins.discover())
    assert [(subject.name, subject.teacher) for subject in both] == [
        ("teacher", ""), ("hovle_linear", "teacher"), ("smolvlm_hybrid", "teacher"),
    ]  # fmt: skip
    once = find_subjects([str(STUDENT), f"{STUDENT}/", TEACHER, TEACHER], Plugins.discover())
    assert [subject.name for subject in once] == ["teacher", "student"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            "hovel:x",
            r"'hovel:x' is neither a folder nor a teacher\. Did you mean 'hovle'\?.*types: hovle, transformers",
        ),
        ("hovle:/no/such", "there is no folder '/no/such'"),
        ("transformers", r"teacher 'transformers' has problems:\n  - checkpoint: is required"),
        (str(TINY_TEACHER), rf"model of type 'internvl_chat', which is no student; .*TYPE:{TINY_TEACHER}"),
        (str(FIXTURES), "holds no config.json, so it is no student"),
    ],
)
def test_a_target_that_is_none_is_told(target: str, text: str) -> None:
    with pytest.raises(LinearizeError, match=text):
        find_subjects([target], Plugins.discover())


def test_all_wrong_targets_are_told_at_once() -> None:
    with pytest.raises(RunError, match=r"(?s)'nothing' is neither.*there is no folder '/no/such'"):
        find_subjects(["nothing", str(STUDENT), "hovle:/no/such"], Plugins.discover())


def test_the_page_needs_nothing_beside_it_and_shows_every_table(measured: tuple[Path, Any]) -> None:
    folder, found = measured
    page = (folder / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    for engine in found.engines:
        for table in speed_tables(found, engine):
            assert f"<h2>{table.title}</h2>" in page
            assert all(f"<td>{cell}</td>" in page for row in table.rows for cell in row)
    assert (folder / "speed.png").is_file()


def test_a_bench_of_a_run_lies_in_it_and_its_report_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES / "run_folder", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the run's recipe names its teacher from here
    options = replace(SHORT, lengths=(4,), engines=("eager",), rounds=1, max_rows=0)
    result = api.bench(["runs/old"], options)
    assert result.file == Path("runs/old/bench/bench.json")
    assert [(model.name, model.teacher) for model in result.bench.models] == [("teacher", ""), ("student", "teacher")]
    assert "What linear time buys" in (tmp_path / "runs/old/report/index.html").read_text()
    assert "<h1>old</h1>" in (tmp_path / "runs/old/bench/index.html").read_text()
    assert RunFolder(Path("runs/old")).is_whole()


def test_a_comparison_stands_for_a_run_of_each_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / "run_folder")
    folder = tmp_path / "mixers"
    for cell, seed in (("gla", 1), ("mamba2", 0), ("mamba2", 1)):
        shutil.copytree(FIXTURES / "run_folder" / "runs" / "old", folder / "cells" / cell / f"seed-{seed}")
    (folder / "cells" / "begun" / "seed-0").mkdir(parents=True)
    (folder / "comparison.json").write_text("{}")
    subjects = find_subjects([str(folder)], Plugins.discover())
    assert [(one.name, one.teacher) for one in subjects] == [("teacher", ""), ("gla", "teacher"), ("mamba2", "teacher")]
    assert bench_folder([str(folder)]) == folder / "bench"
