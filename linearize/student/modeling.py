"""Students as folders: save_student writes one that transformers loads, load_student reads it with clear errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from linearize.errors import CheckpointError
from linearize.files.owned_folder import replace_folder
from linearize.plugin.discovery import Plugins
from linearize.student.card import model_card
from linearize.student.class_factory import MODEL_TYPE_PREFIX
from linearize.student.classes import student_class
from linearize.student.remote_code import MODEL_MODULE, is_model_code, write_processor_code
from linearize.student.snapshot import as_student

CARD = "README.md"
INDEX = "model.safetensors.index.json"
NAMES_WITHOUT_A_LIST = {
    "config.json", "generation_config.json", "model.safetensors", INDEX, f"{MODEL_MODULE}.py", CARD,
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
}  # fmt: skip
"""What version 0.1.0 saved, which took whole folders; a processor's files by the names that transformers gives them."""


def save_student(
    model: Any,
    folder: str | Path,
    processor: Any = None,
    extra: Mapping[str, Any] | None = None,
    plugins: Plugins | None = None,
) -> None:
    """Writes the student that ``model``'s student route runs now; the model itself stays as it is.

    The folder appears whole or not at all. A student that linearize saved there before is replaced only then, and files
    of others beside it stay.

    Args:
        model: a converted teacher, before or after ``release_teacher``, or a loaded student.
        processor: saved beside the weights when given.
        extra: JSON values to keep in config.json and to show in the model card, such as the recipe and the results.
        plugins: where the mixers and the teacher are registered; None: those that are installed.

    Raises:
        CheckpointError: the folder holds files that linearize did not write, and no student, or some in the places of a
            student's; or no teacher plug-in brings the base model.
        ValueError: the model is not converted, a mixer was made without ``build_mixer``, or the model holds something
            that would not come back.
    """
    student = as_student(model, extra or {}, plugins)

    def write(partial: Path) -> None:
        student.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
            write_processor_code(partial, type(processor))
        (partial / CARD).write_text(model_card(student), encoding="utf-8")

    replace_folder(Path(folder).resolve(), write, _files_without_a_list)


def load_student(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    plugins: Plugins | None = None,
) -> Any:
    """The student saved in ``folder``, in eval mode.

    Args:
        dtype: None: as saved. Decay parameters, and what was saved in float32 beside a lower precision, are float32
            whatever is asked.
        plugins: where its mixers and its teacher are registered; None: those that are installed.

    Raises:
        CheckpointError: the folder holds no student, a damaged one, one of a newer version, or one whose teacher or
            mixer is not installed.
    """
    config = _read_config(Path(folder))
    model_type = str(config.get("model_type"))
    if not model_type.startswith(MODEL_TYPE_PREFIX):
        raise CheckpointError(
            f"expected a student in {folder}, but its config.json has model_type '{model_type}'; students saved by "
            f"linearize have one that begins with '{MODEL_TYPE_PREFIX}'"
        )
    student_type = student_class(model_type.removeprefix(MODEL_TYPE_PREFIX), plugins)
    try:
        model = student_type.from_pretrained(folder, dtype="auto" if dtype is None else dtype, plugins=plugins)
    except OSError as error:
        raise CheckpointError(f"the student in {folder} cannot be read: {error}") from error
    return model.to(device).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        found = "the folder does not exist" if not folder.is_dir() else "it has no config.json"
        raise CheckpointError(f"expected a student in {folder}, but {found}; name the folder that save_student wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not a configuration")
    return config


def _files_without_a_list(folder: Path) -> set[str]:
    """Names of the files of a student that linearize saved before folders had a list of them; none in other folders."""
    card = folder / CARD
    if not is_model_code(folder / f"{MODEL_MODULE}.py") or not card.is_file():
        return set()
    if "tags: [linearize" not in card.read_text(encoding="utf-8", errors="replace"):
        return set()
    index = folder / INDEX
    try:
        is_student = str(_read_config(folder).get("model_type")).startswith(MODEL_TYPE_PREFIX)
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        return set()
    return {path.name for path in folder.iterdir()} & (NAMES_WITHOUT_A_LIST | shards) if is_student else set()
