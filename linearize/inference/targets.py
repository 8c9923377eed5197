"""What a command is given to run: the folder of a run, or of a student. Reads configurations, never a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from linearize.errors import CheckpointError, RecipeError, RunError, did_you_mean_path
from linearize.files.json_file import read_sealed
from linearize.files.run_folder import COMPARISON, RUNS, RunFolder
from linearize.plugin.components import ResolvedComponent, read_options
from linearize.plugin.discovery import Plugins
from linearize.plugin.problems import describe_validation
from linearize.plugin.specs import FormatSpec, TeacherSpec

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class StudentTarget:
    """A student's folder, and what it says of its origin.

    Attributes:
        folder: holds config.json and the weights.
        model_type: what config.json says; "linearize_" and the base's where linearize saved it.
        recipe: the resolved recipe that it was made with; empty where a caller of ``save_student`` named none, or
            another project saved the student.
    """

    folder: Path
    model_type: str
    recipe: Mapping[str, Any]

    def published_format(self, plugins: Plugins) -> FormatSpec | None:
        """The format of another project that reads the folder; None where it is linearize's own."""
        formats = plugins.registry.all(FormatSpec)
        return next((spec for spec in formats if self.model_type in spec.model_types), None)

    def load(
        self, *, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu", plugins: Plugins
    ) -> Any:
        """The model in eval mode.

        Args:
            dtype: of the weights; None as they are stored.

        Raises:
            CheckpointError: the folder is no student, or is damaged.
            PluginError: a plug-in that the student needs is missing.
        """
        import torch

        from linearize.student import modeling

        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        published = self.published_format(plugins)
        if published is None:
            return modeling.load_student(self.folder, dtype=wanted, device=device, plugins=plugins)
        reader = ResolvedComponent(published, published.config_class()(), plugins.registry.owner(published))
        return reader.build().read(self.folder).to(device=device, dtype=wanted).eval()

    def teacher(self, plugins: Plugins) -> ResolvedComponent:
        """The teacher that the student was made of, as its recipe describes it.

        Raises:
            CheckpointError: the folder does not say.
            UnknownNameError: no installed plug-in brings it.
            RecipeError: its options are not those of the installed plug-in.
        """
        table = self.recipe.get("teacher")
        if not isinstance(table, Mapping) or not isinstance(table.get("type"), str):
            raise CheckpointError(
                f"{self.folder / CONFIG} does not say which teacher the student was made of, as students of a run do; "
                "its prompts are written as the teacher's are. Save it with "
                'save_student(..., extra={"recipe": {"teacher": {"type": ..., "checkpoint": ...}}})'
            )
        options = {name: value for name, value in table.items() if name != "type"}
        return resolve_teacher(table["type"], options, plugins, f"the recipe in {self.folder / CONFIG}")


def resolve_teacher(name: str, options: Mapping[str, Any], plugins: Plugins, asked_by: str) -> ResolvedComponent:
    """A teacher with checked options; ``build()`` gives its adapter.

    Args:
        name: what a recipe writes behind ``type =``.
        options: the other keys of its table.
        asked_by: what messages call the one who asked.

    Raises:
        UnknownNameError: no installed plug-in brings such a teacher.
        RecipeError: an option is unknown or has a wrong value.
    """
    spec = plugins.registry.get(TeacherSpec, name, plugins.failures_hint())
    config_class = spec.config_class()
    try:
        config = read_options(config_class, options, plugins)
    except ValidationError as error:
        raise RecipeError(asked_by, describe_validation(error, config_class)) from None
    return ResolvedComponent(spec, config, plugins.registry.owner(spec))


def find_student(target: str | Path) -> StudentTarget:
    """The student in a folder, or the one that a finished run left.

    Raises:
        RunError: the run is not finished, or the folder is a comparison's.
        CheckpointError: there is no such folder, it holds no student, or its config.json cannot be read.
    """
    folder = Path(target).expanduser()
    if not folder.is_dir():
        beside = RUNS / folder
        near = f" Did you mean '{beside}'?" if beside.is_dir() else did_you_mean_path(folder)
        raise CheckpointError(f"there is no folder '{folder}'.{near} Give a run, such as runs/my-run, or a student's")
    if (folder / COMPARISON).is_file():
        raise RunError(f"{folder} holds a comparison of several runs; give one of them, or a student's folder")
    run = RunFolder(folder)
    if run.recipe.is_file():
        if read_sealed(run.done) is None or not (run.student / CONFIG).is_file():
            raise RunError(
                f"the run in {folder} has not finished, so it has no student yet; `linearize run {run.recipe}` goes on "
                "where it stopped"
            )
        folder = run.student
    return _read(folder)


def _read(folder: Path) -> StudentTarget:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(config["model_type"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no {CONFIG}, so it is no student, and no recipe.toml, so it is no run; give the folder of "
            "a run, the student/ folder in it, or a published checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no readable model configuration: {error!r}") from error
    described = config.get("linearize")
    extra = described.get("extra") if isinstance(described, Mapping) else None
    recipe = extra.get("recipe") if isinstance(extra, Mapping) else None
    return StudentTarget(folder, model_type, recipe if isinstance(recipe, Mapping) else {})
