"""A run folder as a three-stage run leaves it, written by the evaluation's own code from made-up answers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from linearize.evaluate.examples import keep_examples
from linearize.evaluate.scores import TaskScore, average_retention
from linearize.protocols.conversation import Conversation, Turn
from linearize.report.page import write_report
from linearize.report.results import write_results

TASKS = {
    "colour": 0.99, "count": 0.97, "spatial": 0.96, "ocr": 0.88, "chart": 1.0, "digit": 0.95, "album": 0.91,
    "recall": 0.82,
}  # fmt: skip
NUM_SITES = 8
RECIPE = """[run]
name = "mmmamba-hovle"
seed = 0

[teacher]
type = "hovle"
checkpoint = "embedded"

[student.mixer]
type = "mamba2"

[student.layout]
type = "all"

[student.seeder]
type = "mimic"
"""


def drawn_image(draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (112, 112), (246, 244, 238))
    for _ in range(3):
        x, y = draw.randint(4, 80), draw.randint(4, 80)
        colour = tuple(draw.randint(30, 220) for _ in range(3))
        ImageDraw.Draw(image).ellipse((x, y, x + 26, y + 26), fill=colour)
    return image


def write_stages(folder: Path, num_steps: int, draw: random.Random) -> None:
    plans = [
        ("align-new", "layer_mse", 1.05, 0.93), ("align-mixer", "layer_mse", 0.95, 0.5), ("distill", "logit_kl", 0, 0),
    ]  # fmt: skip
    for number, (name, objective, start, end) in enumerate(plans, 1):
        path = folder / "stages" / f"{number}-{name}"
        path.mkdir(parents=True)
        lines = []
        for step in range(10, num_steps + 1, 10):
            done = 1 - math.exp(-4 * step / num_steps)
            line = {"lr": 1e-3, "step": step, "tokens": 1700 * step, "tokens_per_second": 9000.0, "memory_gib": 1.7}
            if start:
                line["sites"] = {
                    str(site): (start + (end - start) * done) * (0.8 + 0.05 * site) for site in range(NUM_SITES)
                }
                line["loss"] = sum(line["sites"].values()) * draw.uniform(0.95, 1.05)
            else:
                line["loss"] = (1.4 * (1 - done) + 0.04) * draw.uniform(0.7, 1.4)
            lines.append(line)
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        done_file = {
            "key": f"{number}", "name": name, "objective": objective, "steps": num_steps, "seconds": 61.5 * number,
            "tokens": 1700 * num_steps, "trained_parameters": 141_000 if number == 1 else 403_000,
            "first_loss": lines[0]["loss"] * 1.1, "last_loss": lines[-1]["loss"],
            "first_sites": {key: 1.1 * value for key, value in lines[0].get("sites", {}).items()},
            "sites": lines[-1].get("sites", {}),
        }  # fmt: skip
        (path / "done.json").write_text(json.dumps(done_file), encoding="utf-8")


def write_evaluation(folder: Path, num_questions: int, draw: random.Random) -> None:
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True)
    tasks, dials, scores, examples = {}, {}, [], []
    for task, share in TASKS.items():
        right, kept = (draw.choices([True, False], [p, 1 - p], k=num_questions) for p in (0.97, share))
        score = TaskScore.from_answers(right, [r and k for r, k in zip(right, kept, strict=True)])
        scores.append(score)
        tasks[task] = {**described(score), "kl": 0.3 * (1 - share) + 0.004, "top1_agreement": 0.5 + share / 2}
        num_images = {"album": 3, "recall": 0}.get(task, 1)
        questions = [
            Conversation(
                (Turn("<image>\n" * num_images + f"What does {task} ask about no. {n}?", "red circle"),),
                tuple(drawn_image(draw) for _ in range(num_images)),
            )
            for n in range(8)
        ]
        said = ["<b>blue</b> square" if n == 5 else "red circle" for n in range(8)]
        teacher = [{"answer": "red circle", "correct": n != 2} for n in range(8)]
        student = [{"answer": text, "correct": n not in (2, 5)} for n, text in enumerate(said)]
        examples += keep_examples(evaluation, task, questions, teacher, student, 3)
    for task in ("ocr", "recall"):
        rows = []
        for level in range(2, 13, 2):
            kept = draw.choices([True, False], [max(0.15, 1 - 0.007 * level**2), min(0.85, 0.007 * level**2)], k=100)
            rows.append({"difficulty": level, **described(TaskScore.from_answers([True] * 98 + [False] * 2, kept))})
        dials[task] = rows
    mean, interval = average_retention(scores)
    summary = {
        "key": "3", "tasks": tasks, "average_retention": mean, "average_retention_interval": interval, "kl": 0.0312,
        "top1_agreement": 0.971, "answer_tokens": 5120, "dials": dials,
    }  # fmt: skip
    (evaluation / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (evaluation / "examples.json").write_text(json.dumps(examples), encoding="utf-8")


def described(score: TaskScore) -> dict:
    return {
        "teacher": score.teacher, "student": score.student, "retention": score.retention, "questions": score.questions,
        "teacher_interval": score.teacher_interval(), "student_interval": score.student_interval(),
        "retention_interval": score.retention_interval(),
    }  # fmt: skip


def make_run(folder: Path, num_steps: int = 200, num_questions: int = 200) -> Path:
    draw = random.Random(0)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    environment = {
        "linearize": "0.1.0", "device": "cpu", "processor": "AMD EPYC 9B14", "commit": None,
        "packages": {"torch": "2.13.0"},
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    write_stages(folder, num_steps, draw)
    write_evaluation(folder, num_questions, draw)
    return folder


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, to be looked at and not changed."""
    folder = make_run(tmp_path_factory.mktemp("reported") / "mmmamba-hovle")
    write_results(folder)
    write_report(folder)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "mmmamba-hovle")
