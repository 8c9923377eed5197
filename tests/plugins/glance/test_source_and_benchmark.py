"""The data source and the benchmark that recipes name, and the words that they use."""

from __future__ import annotations

from collections import Counter

import pytest
from linearize_glance import linearize_register
from linearize_glance.benchmark import GlanceBenchmark
from linearize_glance.config import GlanceBenchmarkConfig, GlanceConfig
from linearize_glance.drawing import TASKS, draw
from linearize_glance.source import GlanceSource
from linearize_glance.streams import SPLITS
from linearize_glance.wording import vocabulary_corpus, words
from pydantic import ValidationError

from linearize.errors import UnknownNameError
from linearize.plugin.specs import BenchmarkSpec, DataSpec, Spec
from linearize.protocols.conversation import Conversation, Turn


def test_a_source_gives_the_same_conversation_whenever_an_index_is_asked_for() -> None:
    first, second = GlanceSource(GlanceConfig(seed=5)), GlanceSource(GlanceConfig(seed=5))
    for index in (0, 17, 10**9, 3, 0):
        one, other = first[index], second[index]
        assert one.turns == other.turns
        assert one.id == other.id
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]


def test_a_source_mixes_tasks_by_their_weights() -> None:
    source = GlanceSource(GlanceConfig(tasks={"recall": 3.0, "chart": 1.0}))
    counts = Counter(source[index].task for index in range(800))
    assert set(counts) == {"recall", "chart"}
    # Standard deviation of the share is 0.015.
    assert abs(counts["recall"] / 800 - 0.75) < 0.06


def test_a_source_keeps_to_the_turns_and_difficulties_of_its_config() -> None:
    source = GlanceSource(GlanceConfig(tasks={"recall": 1.0}, turns=(2, 3), difficulty={"recall": (5, 6)}))
    conversations = [source[index] for index in range(100)]
    assert {len(conversation.turns) for conversation in conversations} == {2, 3}
    pairs = {len(conversation.turns[0].question.split("\n")[0].split()) // 2 for conversation in conversations}
    assert pairs == {5, 6}


def test_a_source_as_arrays_shows_what_it_shows_as_images() -> None:
    source = GlanceSource(GlanceConfig())
    for index in range(20):
        task, drawing = source.arrays(index)
        conversation = source[index]
        assert (task, drawing.turns) == (conversation.task, conversation.turns)
        assert [picture.tobytes() for picture in drawing.pictures] == [image.tobytes() for image in conversation.images]


def test_a_source_with_a_size_ends_there_and_one_without_does_not() -> None:
    assert GlanceSource(GlanceConfig()).size is None
    source = GlanceSource(GlanceConfig(size=3))
    assert len(list(source)) == source.size == 3  # type: ignore[call-overload]
    with pytest.raises(IndexError, match="conversation 3 asked for; this source has 0 to 2"):
        source[3]
    with pytest.raises(IndexError, match="conversation -1"):
        GlanceSource(GlanceConfig())[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {"counting": 1.0}}, "glance has no task 'counting'; it has attribute"),
        ({"tasks": {"count": 0.0}}, "greater than 0"),
        ({"tasks": {}}, "at least 1 item"),
        ({"turns": (3, 2)}, "is not a range of at least 1"),
        ({"difficulty": {"ocr": (1, 9)}}, "asked for with 9 characters; it draws 1 to 8"),
        ({"difficulty": {"ocr": (4, 2)}}, "runs from 4 to 2"),
        ({"weights": {}}, "Extra inputs"),
    ],
)
def test_a_source_config_that_cannot_be_drawn_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GlanceConfig.model_validate(options)


def test_a_benchmark_asks_single_questions_that_no_run_has_trained_on() -> None:
    benchmark = GlanceBenchmark(GlanceBenchmarkConfig(questions=4))
    assert tuple(benchmark.tasks) == tuple(TASKS)
    for task in benchmark.tasks:
        questions = benchmark.questions(task)
        assert len(questions) == 4
        assert all(len(question.turns) == 1 and question.id.startswith("glance/evaluation/") for question in questions)
        assert [q.turns for q in questions] == [q.turns for q in benchmark.questions(task)]


def test_a_benchmark_draws_every_level_of_its_dials() -> None:
    benchmark = GlanceBenchmark(GlanceBenchmarkConfig(questions=2, tasks=("count", "recall", "ocr", "album")))
    assert set(benchmark.dials) == {"recall", "ocr", "album"}
    assert (max(benchmark.dials["recall"]), max(benchmark.dials["ocr"]), max(benchmark.dials["album"])) == (32, 8, 6)
    for task, levels in benchmark.dials.items():
        assert list(levels) == sorted(levels)
        assert all(len(benchmark.questions(task, difficulty=level)) == 2 for level in levels)


def test_validation_and_evaluation_ask_different_questions() -> None:
    asked = [
        {question.turns[0].question for question in GlanceBenchmark(config).questions("recall", 12)}
        for config in (GlanceBenchmarkConfig(questions=50), GlanceBenchmarkConfig(questions=50, split="validation"))
    ]
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [("K 7", True), (" k  7\n", True), ("K 7.", True), ("K7", False), ("7 K", False), ("K 7 Q", False), ("", False)],
)
def test_answers_count_as_right_only_when_all_of_them_is_there_in_order(answer: str, is_right: bool) -> None:
    question = Conversation((Turn("<image>\nread the text", "K 7"),))
    assert GlanceBenchmark(GlanceBenchmarkConfig()).is_correct(question, answer) is is_right


def test_a_benchmark_refuses_splits_that_are_trained_on_and_tasks_it_does_not_ask() -> None:
    with pytest.raises(ValidationError, match="split 'distil' is trained on"):
        GlanceBenchmarkConfig(split="distil")
    with pytest.raises(ValidationError, match="name one task twice"):
        GlanceBenchmarkConfig(tasks=("ocr", "ocr"))
    with pytest.raises(UnknownNameError, match="unknown task of this glance benchmark 'ocr'"):
        GlanceBenchmark(GlanceBenchmarkConfig(tasks=("count",))).questions("ocr")


def test_the_corpus_holds_every_word_of_every_task_and_they_are_few() -> None:
    known = set(words())
    assert len(known) < 150
    for task in TASKS:
        for split in SPLITS:
            for index in range(60):
                for turn in draw(task, split, 2, index, turns=12).turns:
                    text = f"{turn.question} {turn.answer}".replace("<image>", " ")
                    assert set(text.split()) <= known
    assert not any("<image>" in line for line in vocabulary_corpus())


def test_every_word_and_character_of_a_corpus_is_said() -> None:
    said: set[str] = set()
    for task in TASKS:
        for index in range(400):
            for turn in draw(task, "teacher", 2, index, turns=4).turns:
                said |= set(f"{turn.question} {turn.answer}".split())
    assert set(words()) <= said


def test_registering_names_a_source_and_a_benchmark_whose_targets_exist() -> None:
    specs: list[Spec] = []
    linearize_register(specs.append)
    assert [(type(spec), spec.name) for spec in specs] == [(DataSpec, "glance"), (BenchmarkSpec, "glance")]
    for spec in specs:
        assert spec.builder()(spec.config_class()())
