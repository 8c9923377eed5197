"""A few questions per task with both models' answers, kept with their images for the report. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearize.data.images import to_rgb
from linearize.files.names import file_name
from linearize.files.whole_file import written_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from linearize.protocols.conversation import Conversation

LONGEST_SIDE = 448
"""Pixels; larger images are scaled down to this, so that a report of many photographs is still easy to send."""
LOSSLESS_AREA = 256 * 256
"""Pixels; drawn images of at most this area are kept exactly."""


def choose_examples(teacher: Sequence[dict[str, Any]], student: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Up to ``count`` question numbers, taken in turn from: only the teacher right, both right, only the student right,
    both wrong, so that a difference is shown wherever there is one without hiding what goes well."""
    groups: dict[tuple[bool, bool], list[int]] = {
        (True, False): [], (True, True): [], (False, True): [], (False, False): [],
    }  # fmt: skip
    for index, (of_teacher, of_student) in enumerate(zip(teacher, student, strict=True)):
        groups[bool(of_teacher["correct"]), bool(of_student["correct"])].append(index)
    chosen: list[int] = []
    for turn in range(count):
        chosen.extend(group[turn] for group in groups.values() if turn < len(group))
    return chosen[:count]


def keep_examples(
    folder: Path,
    task: str,
    questions: Sequence[Conversation],
    teacher: Sequence[dict[str, Any]],
    student: Sequence[dict[str, Any]],
    count: int,
) -> list[dict[str, Any]]:
    """Writes the images of a task's examples under ``folder``/images and describes the examples.

    Returns:
        per example: task, question, right, teacher, teacher_correct, student, student_correct, and images as paths
        relative to ``folder``.
    """
    examples = []
    for index in choose_examples(teacher, student, count):
        item = questions[index]
        paths = []
        for number, image in enumerate(item.images):
            path = Path("images") / f"{file_name(task, index, number)}.webp"
            _write_image(image, folder / path)
            paths.append(path.as_posix())
        examples.append(
            {
                "task": task,
                "question": item.turns[-1].question,
                "right": item.turns[-1].answer,
                "teacher": teacher[index]["answer"],
                "teacher_correct": teacher[index]["correct"],
                "student": student[index]["answer"],
                "student_correct": student[index]["correct"],
                "images": paths,
            }
        )
    return examples


def _write_image(image: Image, path: Path) -> None:
    small = to_rgb(image).copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    is_small = small.width * small.height <= LOSSLESS_AREA
    with written_whole(path) as part:
        small.save(part, format="WEBP", lossless=is_small, quality=90)
