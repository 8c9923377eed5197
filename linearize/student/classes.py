"""Students as transformers models: one configuration and one model class per base model, made when first asked for.

A student's model type is "linearize_" and that of its base, so that transformers without linearize refuses the folder;
with the base's own type it would build the softmax teacher and leave its attention untrained.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from linearize.errors import CheckpointError, PluginError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import TeacherSpec, load_target
from linearize.student.convert import convert, linearized_sites, release_teacher
from linearize.student.description import build_mixers, read_description

MODEL_TYPE_PREFIX = "linearize_"
AUTO_CLASSES = (AutoModelForImageTextToText, AutoModelForCausalLM)


def student_class(base_model_type: str) -> Any:
    """The model class of students of one base; its ``config_class`` is their configuration.

    Raises:
        CheckpointError: no installed teacher brings that base model, or two bring different ones.
        PluginError: the plug-in that brings it cannot be imported.
    """
    teachers = Plugins.discover().registry.all(TeacherSpec)
    targets = {spec.model_types[base_model_type]: spec.name for spec in teachers if base_model_type in spec.model_types}
    if not targets:
        further = {spec.name: spec.further_model_types() for spec in teachers}
        targets = {types[base_model_type]: name for name, types in further.items() if base_model_type in types}
    if not targets:
        known = sorted({model_type for spec in teachers for model_type in spec.model_types})
        raise CheckpointError(
            f"students of '{base_model_type}' models need a teacher plug-in that brings this model; the installed ones "
            f"bring {', '.join(known) or 'none'}{_and_more(further)}. Install the plug-in whose TeacherSpec names it "
            "in model_types or model_types_from."
        )
    if len(targets) > 1:
        raise CheckpointError(
            f"teachers {', '.join(sorted(targets.values()))} bring different '{base_model_type}' models: "
            f"{', '.join(targets)}; disable one plug-in with LINEARIZE_DISABLED_PLUGINS"
        )
    (target,) = targets
    return _make_classes(target, base_model_type)


def register_students() -> None:
    """Makes AutoConfig and the AutoModel classes know the students of every installed teacher.

    The classes of models that a teacher gives through ``model_types_from`` are made when a configuration asks for them:
    there may be hundreds. A teacher plug-in that cannot be imported is warned about and left out.
    """
    teachers = Plugins.discover().registry.all(TeacherSpec)
    listed = {model_type for spec in teachers for model_type in spec.model_types}
    for model_type in sorted(listed):
        try:
            student_class(model_type)
        except (PluginError, CheckpointError) as error:
            warnings.warn(f"students of '{model_type}' models cannot be loaded: {error}", stacklevel=2)
    for spec in teachers:
        try:
            further = spec.further_model_types()
        except PluginError as error:
            warnings.warn(f"students of further models cannot be loaded: {error}", stacklevel=2)
            continue
        for model_type in set(further) - listed:
            AutoConfig.register(MODEL_TYPE_PREFIX + model_type, _deferred_config(model_type), exist_ok=True)


def _deferred_config(base_model_type: str) -> Any:
    """Stands in AutoConfig's table until a configuration of that type is read; then the real classes take over."""

    def from_dict(cls: Any, config: dict[str, Any], /, **kwargs: Any) -> Any:
        return student_class(base_model_type).config_class.from_dict(config, **kwargs)

    return type("DeferredStudentConfig", (), {"from_dict": classmethod(from_dict), "__module__": __name__})


def _and_more(further: Mapping[str, Mapping[str, str]]) -> str:
    return "".join(f", and teacher '{name}' {len(types)} more" for name, types in further.items() if types)


def remote_classes(base_model_type: str, module: str) -> tuple[Any, Any]:
    """Configuration and model class for the code file in a student's folder, as if ``module`` had defined them."""
    student = student_class(base_model_type)
    base_config = student.config_class
    config: Any = type("StudentConfig", (base_config,), {"__module__": module, "__init__": base_config.__init__})
    return config, type("StudentModel", (student,), {"__module__": module, "config_class": config})


def remote_processor(target: str) -> Any:
    """The processor class "package.module:Class" of a teacher plug-in, for the same file."""
    Plugins.discover()
    return load_target(target, "the student's processor")


@functools.cache
def _make_classes(target: str, base_model_type: str) -> Any:
    base = _base_class(target, base_model_type)
    config = _config_class(base.config_class)
    model = _model_class(base, config)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto in AUTO_CLASSES:
        auto.register(config, model, exist_ok=True)
    return model


def _base_class(target: str, model_type: str) -> Any:
    base = load_target(target, f"the base model '{model_type}'")
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise PluginError(f"the base model '{model_type}' is said to be {target}; a PreTrainedModel class was due")
    found = getattr(base.config_class, "model_type", None)  # type: ignore[attr-defined]
    if found != model_type:
        raise PluginError(f"the base model {target} has model_type '{found}', not '{model_type}'")
    return base


def _config_class(base: Any) -> Any:
    def __init__(self: Any, linearize: dict[str, Any] | None = None, **kwargs: Any) -> None:
        base.__init__(self, **kwargs)
        self.linearize = linearize

    name = f"Linearized{base.__name__}"
    members = {
        "__doc__": f"A {base.__name__} whose ``linearize`` entry is a StudentDescription as plain data.",
        "__module__": __name__,
        "__init__": __init__,
        "model_type": MODEL_TYPE_PREFIX + base.model_type,
        # transformers before 5.18 renames layer types of other people's configurations, and its own models do not
        # know the new names.
        "is_custom_code": classmethod(lambda cls: base.is_custom_code()),
    }
    return type(name, (base,), members)


def _model_class(base: Any, config_type: Any) -> Any:
    class Student(base):
        """The base model with mixers in its linear sites."""

        config_class = config_type
        _is_stateful = True
        _can_compile_fullgraph = False

        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            _install_mixers(self, config)

        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
            """Loads a saved student, and refuses a folder that lacks a tensor or has one too many.

            Raises:
                CheckpointError: a tensor is missing, surplus or misshapen, a file is damaged, or a mixer unknown.
            """
            wants_info = kwargs.pop("output_loading_info", False)
            kwargs = {"ignore_mismatched_sizes": True, **kwargs, "output_loading_info": True}
            try:
                model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            except SafetensorError as error:
                raise CheckpointError(
                    f"a weight file of {pretrained_model_name_or_path} is damaged or cut short: {error}. "
                    "Copy or save it anew."
                ) from error
            _refuse_wrong_tensors(pretrained_model_name_or_path, info)
            return (model, info) if wants_info else model

    Student.__name__ = Student.__qualname__ = f"Linearized{base.__name__}"
    return Student


def _install_mixers(model: Any, config: Any) -> None:
    """Swaps the mixers in that the configuration describes, as part of a student's constructor."""
    description = read_description(config.linearize)
    mixers = build_mixers(description)
    try:
        convert(model, description.sites, mixers)
    except ValueError as error:
        raise CheckpointError(f"the configuration's sites do not fit a {type(model).__name__}: {error}") from error
    release_teacher(model)
    model.requires_grad_(True)
    # post_init has made this instance's own set in the base's constructor.
    for slot in linearized_sites(model):
        mixer: Any = slot.mixer
        _make_buffers_persistent(mixer)
        model._keep_in_fp32_modules_strict |= {f"{slot.site.path}.mixer.{name}" for name in fp32_parameters(mixer)}
        if not any(parameter.is_meta for parameter in mixer.parameters()):
            device = next(mixer.parameters()).device
            mixer.initialize("scratch", torch.Generator(device).manual_seed(slot.site.index))


def fp32_parameters(mixer: Any) -> list[str]:
    """A mixer's decay parameters, which stay fp32 in a model of lower precision.

    Matrices are left out: those are projections that give a token's decay, and a projection runs in the model's dtype.
    """
    shapes = {name: parameter.dim() for name, parameter in mixer.named_parameters()}
    return [name for name, roles in mixer.roles().items() if "decay" in roles and shapes[name] < 2]


def _make_buffers_persistent(mixer: nn.Module) -> None:
    """from_pretrained builds on the meta device and leaves buffers that no file holds as uninitialised memory."""
    for module in mixer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=True)


def _refuse_wrong_tensors(folder: Any, info: dict[str, Any]) -> None:
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(map(str, names))[:5])}{', ...' if len(names) > 5 else ''})"
        for what, key in (
            ("missing", "missing_keys"),
            ("surplus", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        if (names := list(info.get(key) or ()))
    ]
    if problems:
        raise CheckpointError(
            f"the weights in {folder} do not fit the student that its config.json describes; tensors: "
            f"{'; '.join(problems)}. Save the student anew, and keep config.json and weights of one save together."
        )
