"""The student of a run, as somebody who was given its folder uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import environment
from linearize_glance.config import GlanceBenchmarkConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

import linearize
import linearize.auto  # the one import that the Auto classes need
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import BenchmarkSpec, TeacherSpec
from linearize.testing.numbers import ROUNDING

pytestmark = pytest.mark.slow

TASKS = ("attribute", "album", "recall")
"""One picture, several pictures, none."""


@pytest.fixture(scope="module")
def questions() -> list[Any]:
    benchmark = (
        Plugins.discover()
        .registry.get(BenchmarkSpec, "glance")
        .builder()(GlanceBenchmarkConfig(questions=2, split="validation"))
    )
    return [question for task in TASKS for question in benchmark.questions(task)]


@pytest.fixture(scope="module")
def inputs(questions: list[Any]) -> dict[str, torch.Tensor]:
    spec = Plugins.discover().registry.get(TeacherSpec, "hovle")
    adapter = spec.builder()(spec.config_class()())
    batch: dict[str, torch.Tensor] = adapter.batch(questions, for_generation=True).inputs
    return batch


def test_both_ways_to_load_give_the_same_logits_and_answers(reference: Path, inputs: dict[str, torch.Tensor]) -> None:
    auto = AutoModelForImageTextToText.from_pretrained(reference / "student").eval()
    own = linearize.load_student(reference / "student")
    assert type(auto) is type(own)
    with torch.no_grad():
        torch.testing.assert_close(auto(**inputs).logits, own(**inputs).logits, **ROUNDING)
        answers = [model.generate(**inputs, do_sample=False, max_new_tokens=5) for model in (auto, own)]
    assert torch.equal(*answers)


def test_a_fresh_interpreter_needs_no_import_with_trust_remote_code(
    demo: Any, reference: Path, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(inputs, tmp_path / "inputs.pt")
    code = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor).__name__ == "HovleProcessor"
with torch.no_grad():
    torch.save(model(**torch.load("inputs.pt")).logits, "logits.pt")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(reference / "student")],
        cwd=tmp_path, env=environment(HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1"),
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are cut up by threads
    try:
        with torch.no_grad():
            expected = linearize.load_student(reference / "student")(**inputs).logits
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, **ROUNDING)


def test_the_processor_makes_of_a_chat_what_the_student_was_trained_on(
    reference: Path, questions: list[Any], inputs: dict[str, torch.Tensor]
) -> None:
    processor = AutoProcessor.from_pretrained(reference / "student")
    prompts = []
    for question in questions:
        text = question.turns[0].question
        if len(question.images) == 1:
            content = [{"type": "image"}, {"type": "text", "text": text.removeprefix("<image>\n")}]
        else:  # no picture, or several with a number in front of each: marks in the text say where
            content = text
        chat = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
    images = [image for question in questions for image in question.images]
    made = processor(images=images, text=prompts)
    assert made.keys() == inputs.keys()
    for name, tensor in inputs.items():
        assert torch.equal(made[name], tensor), name


def test_the_student_answers_alone_as_the_run_found_that_it_does(reference: Path, demo: Any) -> None:
    """What is saved is what was evaluated, question by question."""
    import json

    stored = json.loads((reference / "evaluation" / "answers" / "glance.count.student.json").read_text())
    plugins = Plugins.discover().registry
    benchmark = plugins.get(BenchmarkSpec, "glance").builder()(GlanceBenchmarkConfig(questions=2))
    spec = plugins.get(TeacherSpec, "hovle")
    adapter = spec.builder()(spec.config_class()())
    batch = adapter.batch(benchmark.questions("count"), for_generation=True)
    model = linearize.load_student(reference / "student")
    with torch.no_grad():
        ids = model.generate(**batch.inputs, do_sample=False, max_new_tokens=32)
    answers = adapter.decode(ids[:, batch.inputs["input_ids"].shape[1] :])
    assert answers == [entry["answer"] for entry in stored["answers"]]
