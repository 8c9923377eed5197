"""Students as folders: save_student writes one that transformers loads, load_student reads it with clear errors."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linearize.errors import CheckpointError
from linearize.student.card import model_card
from linearize.student.classes import AUTO_CLASSES, MODEL_TYPE_PREFIX, student_class
from linearize.student.convert import linearized_sites
from linearize.student.description import describe_student
from linearize.student.site import LinearizedAttention

REMOTE_MODULE = "modeling_linearize"
REMOTE_CODE = '''"""Loads this student with trust_remote_code=True where linearize and its plug-ins are installed."""

from linearize.student.classes import remote_classes, remote_processor

StudentConfig, StudentModel = remote_classes("{base}", __name__)
'''
REMOTE_PROCESSOR = """StudentProcessor = remote_processor("{target}")
"""


def save_student(model: Any, folder: str | Path, processor: Any = None, extra: Mapping[str, Any] | None = None) -> None:
    """Writes the student that ``model``'s student route runs now; the model itself stays as it is.

    The folder appears whole or not at all, and a student that it held before is replaced only then.

    Args:
        model: a converted teacher, before or after ``release_teacher``, or a loaded student.
        processor: saved beside the weights when given.
        extra: JSON values to keep in config.json and to show in the model card, such as the recipe and the results.

    Raises:
        CheckpointError: the folder holds something else than a model, or no installed teacher brings the base model.
        ValueError: the model is not converted, or a mixer was made without ``build_mixer``.
    """
    folder = Path(folder).resolve()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} was to take a student, but holds other files and no config.json; name another folder"
        )
    student = as_student(model, extra or {})

    def write(partial: Path) -> None:
        student.save_pretrained(partial)
        code = REMOTE_CODE.format(base=student.config.model_type.removeprefix(MODEL_TYPE_PREFIX))
        if processor is not None:
            processor.save_pretrained(partial)
            code += _remote_processor(partial, type(processor))
        (partial / f"{REMOTE_MODULE}.py").write_text(code, encoding="utf-8")
        (partial / "README.md").write_text(model_card(student), encoding="utf-8")

    _replace_folder(folder, write)


def load_student(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Any:
    """The student saved in ``folder``, in eval mode.

    Args:
        dtype: None: as saved. Decay parameters are fp32 whatever is asked.

    Raises:
        CheckpointError: the folder holds no student, a damaged one, or one whose teacher or mixer is not installed.
    """
    config = _read_config(Path(folder))
    model_type = str(config.get("model_type"))
    if not model_type.startswith(MODEL_TYPE_PREFIX):
        raise CheckpointError(
            f"{folder} was to be a student, but its config.json has model_type '{model_type}'; students saved by "
            f"linearize have one that begins with '{MODEL_TYPE_PREFIX}'"
        )
    student_type = student_class(model_type.removeprefix(MODEL_TYPE_PREFIX))
    try:
        model = student_type.from_pretrained(folder, dtype="auto" if dtype is None else dtype)
    except OSError as error:
        raise CheckpointError(f"the student in {folder} cannot be read: {error}") from error
    return model.to(device).eval()


def as_student(model: Any, extra: Mapping[str, Any]) -> Any:
    """The student of ``model`` as an instance of its own class, with the same tensors."""
    base = model.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    student_type = student_class(base)
    description = describe_student(model, base, extra)
    config = student_type.config_class.from_dict(_plain_config(model.config))
    config.linearize = description.model_dump(mode="json")
    config.auto_map = {"AutoConfig": f"{REMOTE_MODULE}.StudentConfig"} | {
        auto.__name__: f"{REMOTE_MODULE}.StudentModel" for auto in AUTO_CLASSES
    }
    with torch.device("meta"):
        student = student_type(config)
    student.load_state_dict(student_state(model), strict=True, assign=True)
    student.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(model.generation_config)
    return student


def student_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``model`` that its student route reads, by the names that they have in a saved student."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for slot in linearized_sites(model):
        inside = f"{slot.site.path}."
        for name in [name for name in state if name.startswith(inside)]:
            del state[name]
        state.update({inside + name: tensor for name, tensor in _site_tensors(slot).items()})
    return state


def _remote_processor(folder: Path, processor: type[Any]) -> str:
    """Code for a processor that transformers does not have; its saved configuration then points to that code."""
    path = folder / "processor_config.json"
    if processor.__module__.startswith("transformers.") or not path.is_file():
        return ""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoProcessor": f"{REMOTE_MODULE}.StudentProcessor"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return REMOTE_PROCESSOR.format(target=f"{processor.__module__}:{processor.__qualname__}")


def _site_tensors(slot: LinearizedAttention) -> dict[str, Tensor]:
    if not slot.linear:
        assert slot.attention is not None  # set_linear refuses a kept site without attention
        return dict(slot.attention.state_dict())
    assert slot.mixer is not None
    # All buffers, also those that state_dict() leaves out: see _make_buffers_persistent.
    mixer = {**slot.mixer.state_dict(), **dict(slot.mixer.named_buffers())}
    return {f"mixer.{name}": tensor.detach() for name, tensor in mixer.items()} | {
        f"o_proj.{name}": tensor for name, tensor in slot.o_proj.state_dict().items()
    }


def _plain_config(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "linearize", "transformers_version"):
        plain.pop(name, None)
    return plain


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        found = "the folder does not exist" if not folder.is_dir() else "it has no config.json"
        raise CheckpointError(f"a student was to be in {folder}, but {found}; name the folder that save_student wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not a configuration")
    return config


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a folder beside ``folder``, flushes it to disk and only then gives it the name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        write(partial)
        for path in (*(path for path in partial.rglob("*") if path.is_file()), partial):
            _flush(path)
        if folder.exists():
            former = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.former")
            folder.rename(former)
            partial.rename(folder)
            shutil.rmtree(former)
        else:
            partial.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
