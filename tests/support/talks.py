"""A student of the embedded HoVLE as its seeds make it, in a folder as a run leaves it, and questions that it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkout import EXAMPLES
from PIL import Image

from linearize import api
from linearize.distill.seeding import seed_student
from linearize.files.run_folder import RunFolder
from linearize.protocols import Conversation, TeacherAdapter
from linearize.student.modeling import save_student


@dataclass(frozen=True)
class Talk:
    """What a conversation needs.

    Attributes:
        run: the folder of a finished run.
        asked: conversations of the demo, with a picture each.
    """

    run: Path
    adapter: TeacherAdapter
    student: Any
    teacher: Any
    asked: list[Conversation]

    @property
    def picture(self) -> Image.Image:
        return self.asked[0].images[0]


def make_run(folder: Path, recipe: str = "mmmamba_hovle.toml") -> Path:
    """The folder of a run that ended before its first step."""
    checked = api.check(EXAMPLES / recipe)
    model = checked.adapter.load(dtype=torch.float32, device="cpu")
    seed_student(model, checked.adapter, checked.recipe, checked.plan, torch.device("cpu"))
    run = RunFolder(folder)
    save_student(model, run.student, checked.adapter.processor(), {"recipe": checked.recipe.tables()})
    run.recipe.write_text(checked.recipe.to_toml())
    run.finish("key")
    return folder


def make_talk(folder: Path, recipe: str) -> Talk:
    run = make_run(folder, recipe)
    checked = api.check(EXAMPLES / recipe)
    source = checked.recipe.components["data"].build()
    asked = [conversation for number in range(20) if (conversation := source[number]).images][:4]
    return Talk(run, checked.adapter, api.load_student(run), api.load_teacher("hovle").model, asked)
