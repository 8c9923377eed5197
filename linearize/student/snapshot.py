"""What a model holds in memory, as a student that saves it; what could not come back is refused before that."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearize.plugin.discovery import Plugins
from linearize.student.class_factory import MODEL_TYPE_PREFIX
from linearize.student.classes import student_class
from linearize.student.consistency import are_one, refuse_other_names, set_dtypes, set_ties, some_names
from linearize.student.convert import linearized_sites
from linearize.student.description import describe_student
from linearize.student.site import LinearizedAttention


def as_student(model: Any, extra: Mapping[str, Any], plugins: Plugins | None = None) -> Any:
    """The student of ``model`` as an instance of its own class, with the same tensors.

    Raises:
        CheckpointError: no teacher plug-in brings the base model.
        ValueError: the model is not converted, or holds something that a saved student would lose; says what.
    """
    base = model.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    student_type = student_class(base, plugins)
    description = describe_student(model, base, extra, plugins)
    _refuse_switched_off_branches(model)
    config = student_type.config_class.from_dict(_plain_config(model.config))
    config.linearize = description.model_dump(mode="json")
    with torch.device("meta"):
        student = student_type(config, plugins=plugins)
    state = student_state(model)
    _refuse_other_tensors(student, state)
    set_ties(student, state)
    student.load_state_dict(state, strict=True, assign=True)
    student.tie_weights()
    _refuse_lost_tensors(student, state)
    set_dtypes(student)
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


def _plain_config(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "linearize", "transformers_version"):
        plain.pop(name, None)
    return plain


def _site_tensors(slot: LinearizedAttention) -> dict[str, Tensor]:
    if not slot.linear:
        assert slot.attention is not None  # set_linear refuses a kept site without attention
        return dict(slot.attention.state_dict())
    assert slot.mixer is not None
    # All buffers, also those that state_dict() leaves out: a student's constructor makes them persistent.
    mixer = {**slot.mixer.state_dict(), **dict(slot.mixer.named_buffers())}
    return {f"mixer.{name}": tensor.detach() for name, tensor in mixer.items()} | {
        f"o_proj.{name}": tensor for name, tensor in slot.o_proj.state_dict().items()
    }


def _refuse_switched_off_branches(model: nn.Module) -> None:
    for slot in linearized_sites(model):
        if slot.linear and (left_out := getattr(slot.mixer, "left_out", None)):
            raise ValueError(
                f"the mixer of site {slot.site.index} runs without {', '.join(sorted(left_out))}, and a saved student "
                "would run with it; leave without_branch() first"
            )


def _refuse_other_tensors(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fails unless ``state`` has the names and shapes that the student's configuration gives."""
    offloaded = [name for name, tensor in state.items() if tensor.is_meta]
    if offloaded:
        raise ValueError(
            f"{len(offloaded)} tensors are on no device ({some_names(offloaded)}), as where accelerate offloads to a "
            "disk; load the model without offloading and save it then"
        )
    shapes = {name: list(tensor.shape) for name, tensor in student.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    other = [f"{name} {found[name]} instead of {shapes[name]}" for name in found.keys() & shapes.keys()
             if found[name] != shapes[name]]  # fmt: skip
    refuse_other_names(shapes, found, other)


def _refuse_lost_tensors(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    kept = student.state_dict()
    lost = [name for name, tensor in state.items() if not are_one(kept[name], tensor)]
    if lost:
        raise ValueError(
            f"{some_names(lost)} would not be saved, for the model's class puts another tensor in that place; make it "
            "the same tensor in the model"
        )
