"""From what a person asked for to models that talk: all that can be wrong is told before a weight is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from linearize.errors import CheckpointError, DataError, LinearizeError
from linearize.inference.chat import Chat, open_image, piped_line, terminal_line
from linearize.inference.targets import StudentTarget, find_student
from linearize.pipeline.display import make_console
from linearize.plugin.discovery import Plugins
from linearize.wording import short_count

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from linearize.inference.speaker import Sampling
    from linearize.protocols import TeacherAdapter


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chat whose weights are still to be loaded."""

    target: StudentTarget
    adapter: TeacherAdapter
    images: list[Image]
    device: torch.device
    dtype: str | None
    with_teacher: bool
    plugins: Plugins

    @property
    def reads_images(self) -> bool:
        """Whether the models do, as far as the adapter tells."""
        return bool(getattr(self.adapter, "reads_images", True))

    def load(self) -> dict[str, Any]:
        """The models by their names."""
        from linearize.files.aligned import align_tensors

        models = {"student": self.target.load(dtype=self.dtype, device=self.device, plugins=self.plugins)}
        if self.with_teacher:
            teacher = self.adapter.load(dtype=models["student"].dtype, device=self.device)
            align_tensors(teacher)
            models["teacher"] = teacher.eval()
        return models


def prepare(
    target: str | Path,
    *,
    images: Sequence[str | Path] = (),
    with_teacher: bool = False,
    device: str = "auto",
    dtype: str | None = None,
    plugins: Plugins,
) -> Prepared:
    """Checks all that can be known without a weight.

    Args:
        target: a run folder, or a student's.
        images: files that go with the first question.
        with_teacher: whether the teacher answers, too.
        device: "auto" (the GPU where there is one) or what torch calls it.
        dtype: of the weights, as torch calls it; None: as the student is stored, for the teacher too.
        plugins: where the components of student and teacher are registered.

    Raises:
        LinearizeError: names what is wrong.
    """
    student = find_student(target)
    if (published := student.published_format(plugins)) is not None:
        raise CheckpointError(
            f"{student.folder} is a checkpoint of format '{published.name}', which does not say how its prompts are "
            "written; chat takes students that linearize saved"
        )
    component = student.teacher(plugins)
    adapter = component.build()
    try:
        adapter.processor()  # what is missing for prompts is told now
        prepared = Prepared(student, adapter, [], find_device(device), dtype, with_teacher, plugins)
        reads_images = prepared.reads_images
    except CheckpointError as error:
        raise CheckpointError(
            f"the student in {student.folder} was made of {component.title}, which writes its prompts, and whose files "
            f"cannot be read: {error.text}"
        ) from error
    if images and not reads_images:
        raise DataError(f"images were given, but the student in {student.folder} is a text model; leave them out")
    prepared.images.extend(map(open_image, images))
    return prepared


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        LinearizeError: torch knows none, or it is not here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LinearizeError(f"torch knows no device '{name}'; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "meta":
        raise LinearizeError("device 'meta' cannot be used here: it holds no weights; try auto or cpu")
    try:
        torch.empty(0, device=device)
    # What torch was built without is an AssertionError (cuda, xpu) or an ImportError (hpu); all else a RuntimeError.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise LinearizeError(f"device '{name}' cannot be used here: {reason}; try auto or cpu") from None
    return device


def talk(prepared: Prepared, sampling: Sampling) -> int:
    """Loads the models and talks until the input ends; how many lines could not be done."""
    from linearize.inference.speaker import Speaker

    is_terminal = sys.stdin.isatty()
    answers = make_console()
    notes = answers if is_terminal else make_console(stderr=True)
    models = prepared.load()
    speakers = {name: Speaker(model, prepared.adapter, sampling) for name, model in models.items()}
    chat = Chat(speakers, answers, notes, is_terminal, prepared.images, prepared.reads_images)
    if is_terminal:
        _introduce(prepared, models, answers)
    elif (sys.stdin.encoding or "").lower().replace("-", "") != "utf8" or sys.stdin.errors != "strict":
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
    chat.run(terminal_line if is_terminal else piped_line)
    return chat.num_faults


def _introduce(prepared: Prepared, models: dict[str, Any], console: Console) -> None:
    for name, model in models.items():
        where = str(prepared.target.folder) if name == "student" else "the student was made of it"
        size = short_count(sum(parameter.numel() for parameter in model.parameters()))
        dtype = str(model.dtype).removeprefix("torch.")
        console.out(f"{name}: {size} parameters, {dtype} on {model.device} ({where})", highlight=False)
    console.print("/help lists the commands; Ctrl-D ends the chat.", style="dim", highlight=False)
