"""Students that earlier versions saved: what they answered then, they answer now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from checkout import FIXTURES
from linearize_hovle.processing import HovleProcessor
from safetensors.torch import load_file

from linearize.student.modeling import load_student, save_student

SAVED = FIXTURES / "saved_students"
FOLDERS = ("hovle_linear", "smolvlm_hybrid")


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_a_student_of_an_earlier_version_answers_as_it_did_and_can_be_saved_again(name: str, tmp_path: Path) -> None:
    inputs = load_file(SAVED / name / "io.safetensors")
    expected = inputs.pop("logits")
    near = 1e-4 * float(expected.abs().max())  # float32 sums in another order
    student = load_student(SAVED / name / "student")
    torch.testing.assert_close(student(**inputs).logits, expected, atol=near, rtol=0)
    save_student(student, tmp_path / "again")
    torch.testing.assert_close(load_student(tmp_path / "again")(**inputs).logits, expected, atol=near, rtol=0)


def test_a_student_of_an_earlier_version_is_replaced_where_it_lies_and_notes_beside_it_stay(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(SAVED / "hovle_linear" / "student", folder)
    (folder / "notes.txt").write_text("mine")
    save_student(load_student(folder), folder, HovleProcessor.from_pretrained(folder))
    assert (folder / "notes.txt").read_text() == "mine"
    assert load_student(folder).config.linearize["format"] > 1
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_the_processor_of_an_earlier_student_writes_the_same_prompt() -> None:
    folder = SAVED / "hovle_linear" / "student"
    processor = HovleProcessor.from_pretrained(folder)
    assert processor.chat_template == (folder / "chat_template.jinja").read_text()
    assert processor.tokenizer("red circles")["input_ids"][0] == processor.tokenizer.bos_token_id
