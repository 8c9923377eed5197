import json

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from linearize.errors import DataError
from linearize.evaluate.runner import SharedAnswers, evaluate
from linearize.protocols import AttentionSite
from linearize.student.site import LinearizedAttention


class Repeater(nn.Module):
    """A model whose teacher route repeats the letters and whose student route holds at most ``span`` of them."""

    device = torch.device("cpu")

    def __init__(self, adapter, span=3, die_at=None):
        super().__init__()
        self.adapter, self.span, self.die_at = adapter, span, die_at
        self.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
        site = AttentionSite(
            index=0, path="site", tower="", layer=0, cache_index=0, hidden_size=8, num_heads=1, num_key_value_heads=1,
            key_dim=8, value_dim=8,
        )  # fmt: skip
        self.site = LinearizedAttention(site, nn.Identity(), nn.Identity(), nn.Identity())
        self.answered = []
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(64, 8), nn.Linear(8, 64)

    def get_output_embeddings(self):
        return self.head

    def generate(self, input_ids, **_):
        role = "teacher" if self.site.runs_teacher else "student"
        self.answered += [role] * len(input_ids)
        if self.die_at is not None and len(self.answered) > self.die_at:
            raise KeyboardInterrupt
        rows = []
        for text in self.adapter.decode(input_ids):
            letters = text.lstrip("_").split(" ")[1].rstrip("?")
            fits = role == "teacher" or len(letters) <= self.span
            rows.append([*self.adapter.encode(letters if fits else "z"), 2])
        width = max(map(len, rows))
        return torch.cat([input_ids, torch.tensor([row + [0] * (width - len(row)) for row in rows])], 1)

    def forward(self, input_ids, attention_mask, use_cache):
        hidden = self.embedding(input_ids) * (1.0 if self.site.runs_teacher else 0.5)

        class Output:
            logits = self.head(hidden)

        return Output


@pytest.fixture
def asked(adapter, tmp_path):
    def ask(model, benchmarks, **options):
        return evaluate(
            model, adapter, benchmarks,
            **{"batch_size": 5, "max_new_tokens": 8, "folder": tmp_path / "evaluation", **options},
        )  # fmt: skip

    return ask


def test_scores_are_shares_of_right_answers_on_the_same_questions(adapter, spelling, asked):
    benchmark = spelling(questions=12)
    summary = asked(Repeater(adapter), {"spelling": benchmark})
    for task in benchmark.tasks:
        short = sum(len(question.turns[0].answer) <= 3 for question in benchmark.questions(task))
        got = summary["tasks"][task]
        assert (got["teacher"], got["student"], got["questions"]) == (1.0, short / 12, 12)
        assert got["retention"] == short / 12
        assert got["student_interval"][0] < short / 12 < got["student_interval"][1]
    shares = [task["retention"] for task in summary["tasks"].values()]
    assert summary["average_retention"] == pytest.approx(sum(shares) / 2)
    assert summary["kl"] > 0
    assert 0 <= summary["top1_agreement"] <= 1


def test_kl_over_all_tasks_weighs_answer_tokens_and_not_tasks(adapter, spelling, asked, tmp_path):
    summary = asked(Repeater(adapter), {"spelling": spelling()})
    counts = {}
    for task in summary["tasks"]:
        counts[task] = json.loads((tmp_path / f"evaluation/answers/spelling.{task}.agreement.json").read_text())
    tokens = {task: found["agreement"]["tokens"] for task, found in counts.items()}
    assert len(set(tokens.values())) == 2
    weighed = sum(summary["tasks"][task]["kl"] * tokens[task] for task in tokens) / sum(tokens.values())
    assert summary["kl"] == pytest.approx(weighed)
    assert summary["answer_tokens"] == sum(tokens.values())


def test_a_dial_is_asked_at_every_position_with_its_own_number_of_questions(adapter, spelling, asked):
    summary = asked(Repeater(adapter, span=1), {"spelling": spelling()}, dial_questions=4)
    assert [(row["difficulty"], row["student"], row["questions"]) for row in summary["dials"]["echo"]] == [
        (1, 1.0, 4),
        (3, 0.0, 4),
    ]
    assert list(summary["dials"]) == ["echo"], "a task without a dial has no curve"


def test_no_dial_is_turned_unless_asked_for(adapter, spelling, asked):
    model = Repeater(adapter)
    assert asked(model, {"spelling": spelling(questions=3)})["dials"] == {}
    assert len(model.answered) == 2 * 2 * 3


def test_a_finished_evaluation_is_read_and_not_asked_again(adapter, spelling, asked):
    first = asked(Repeater(adapter), {"spelling": spelling()}, dial_questions=2)
    again = Repeater(adapter)
    assert asked(again, {"spelling": spelling()}, dial_questions=2) == first
    assert again.answered == []


def test_an_evaluation_that_was_stopped_goes_on_at_the_task_where_it_was(adapter, spelling, asked, tmp_path):
    whole = asked(Repeater(adapter), {"spelling": spelling()}, folder=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        asked(Repeater(adapter, die_at=30), {"spelling": spelling()})
    rest = Repeater(adapter)
    assert asked(rest, {"spelling": spelling()}) == whole
    # 30 answers were given: both roles of the first task (12 + 12), and six of the second task's, which are repeated.
    assert rest.answered == ["teacher"] * 12 + ["student"] * 12


def test_work_under_another_key_or_of_other_questions_is_done_anew(adapter, spelling, asked):
    asked(Repeater(adapter), {"spelling": spelling(questions=3)}, key="first")
    for max_new_tokens, questions in [(8, 3), (8, 4), (9, 4)]:
        model = Repeater(adapter)
        asked(model, {"spelling": spelling(questions=questions)}, key="second", max_new_tokens=max_new_tokens)
        assert len(model.answered) == 2 * 2 * questions


def test_runs_that_share_a_teacher_ask_it_once_and_find_what_they_would_alone(adapter, spelling, asked, tmp_path):
    shared = SharedAnswers(tmp_path / "teacher", "weights")
    alone = asked(Repeater(adapter, span=2), {"spelling": spelling()}, folder=tmp_path / "alone", dial_questions=2)
    asked(Repeater(adapter), {"spelling": spelling()}, key="first", shared=shared, dial_questions=2)
    second = Repeater(adapter, span=2)
    folder = tmp_path / "second"
    options = {"key": "second", "shared": shared, "dial_questions": 2, "folder": folder}
    assert asked(second, {"spelling": spelling()}, **options) == alone
    assert second.answered == ["student"] * (12 + 12 + 2 + 2)
    # A run's folder holds all that was found in it, wherever the answers came from.
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    again = Repeater(adapter, span=2)
    assert asked(again, {"spelling": spelling()}, **options) == alone
    assert again.answered == []


@pytest.mark.parametrize("change", ["key", "questions", "max_new_tokens", "damage"])
def test_shared_answers_to_something_else_are_not_taken_and_give_way(adapter, spelling, asked, tmp_path, change):
    folder = tmp_path / "teacher"
    asked(Repeater(adapter), {"spelling": spelling(questions=3)}, shared=SharedAnswers(folder, "weights"))
    path = folder / "answers/spelling.echo.teacher.json"
    if change == "damage":
        path.write_text(path.read_text()[:40])
    shared = SharedAnswers(folder, "other weights" if change == "key" else "weights")
    options = {"max_new_tokens": 9} if change == "max_new_tokens" else {}
    questions = 4 if change == "questions" else 3
    for run, expected in (("second", 1 if change == "damage" else 2), ("third", 0)):
        model = Repeater(adapter)
        asked(model, {"spelling": spelling(questions=questions)}, folder=tmp_path / run, shared=shared, **options)
        assert model.answered.count("teacher") == expected * questions
        assert model.answered.count("student") == 2 * questions


def test_a_damaged_result_is_asked_again(adapter, spelling, asked, tmp_path):
    asked(Repeater(adapter), {"spelling": spelling(questions=3)})
    path = tmp_path / "evaluation/answers/spelling.echo.student.json"
    path.write_text(path.read_text()[:40])
    model = Repeater(adapter)
    asked(model, {"spelling": spelling(questions=3)})
    assert model.answered == ["student"] * 3
    assert json.loads(path.read_text())["role"] == "student"


def test_tasks_that_two_benchmarks_share_are_told_apart_by_the_benchmark(adapter, spelling, asked):
    benchmarks = {"one": spelling(3, ("echo", "look")), "two": spelling(4, ("echo", "say"))}
    tasks = asked(Repeater(adapter), benchmarks)["tasks"]
    assert {name: task["questions"] for name, task in tasks.items()} == {
        "one/echo": 3, "look": 3, "two/echo": 4, "say": 4,
    }  # fmt: skip


def test_every_task_leaves_examples_with_images_and_both_answers(adapter, spelling, asked, tmp_path):
    asked(Repeater(adapter), {"spelling": spelling()}, num_examples=2)
    examples = json.loads((tmp_path / "evaluation/examples.json").read_text())
    assert [example["task"] for example in examples] == ["echo", "echo", "look", "look"]
    differing = [example for example in examples if example["teacher_correct"] and not example["student_correct"]]
    assert {example["student"] for example in differing} == {"z"}
    assert len(differing) >= 2
    assert all((tmp_path / "evaluation" / path).exists() for example in examples for path in example["images"])
    assert [len(example["images"]) for example in examples] == [0, 0, 1, 1]


def test_progress_rises_to_its_total(adapter, spelling, asked):
    calls = []
    asked(Repeater(adapter), {"spelling": spelling()}, dial_questions=2, progress=lambda *call: calls.append(call))
    done, totals = [call[1] for call in calls], {call[2] for call in calls}
    assert done == sorted(set(done))
    assert totals == {done[-1]}
    assert {"echo: teacher answers", "look: agreement", "echo at 3: student answers"} <= {call[0] for call in calls}


def test_an_evaluation_of_nothing_is_refused(adapter, asked, spelling):
    with pytest.raises(DataError, match=r"evaluate\.benchmarks"):
        asked(Repeater(adapter), {})
    with pytest.raises(DataError, match="benchmark 'empty' has no question for task 'echo'"):
        asked(Repeater(adapter), {"empty": spelling(questions=0)})
