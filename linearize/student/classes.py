"""Students as transformers models: one configuration and one model class per base model, made when first asked for.

A student's model type is "linearize_" and that of its base, so that transformers without linearize refuses the folder;
with the base's own type it would build the softmax teacher and leave its attention untrained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from linearize.errors import CheckpointError, PluginError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import TeacherSpec, load_target
from linearize.student.class_factory import MODEL_TYPE_PREFIX, make_classes


def student_class(base_model_type: str, plugins: Plugins | None = None) -> Any:
    """The model class of students of one base; its ``config_class`` is their configuration.

    Args:
        plugins: where the teachers are registered; None: those that are installed.

    Raises:
        CheckpointError: no installed teacher brings that base model, or two bring different ones.
        PluginError: the plug-in that brings it cannot be imported.
    """
    teachers = (plugins or Plugins.discover()).registry.all(TeacherSpec)
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
    return make_classes(target, base_model_type)


def register_students(plugins: Plugins | None = None) -> None:
    """Makes AutoConfig and the AutoModel classes know the students of every teacher.

    Args:
        plugins: where the teachers are registered; None: those that are installed.

    The classes of models that a teacher gives through ``model_types_from`` are made when a configuration asks for them:
    there may be hundreds. A teacher plug-in that cannot be imported is warned about and left out.
    """
    plugins = plugins or Plugins.discover()
    teachers = plugins.registry.all(TeacherSpec)
    listed = {model_type for spec in teachers for model_type in spec.model_types}
    for model_type in sorted(listed):
        try:
            student_class(model_type, plugins)
        except (PluginError, CheckpointError) as error:
            warnings.warn(f"students of '{model_type}' models cannot be loaded: {error}", stacklevel=2)
    for spec in teachers:
        try:
            further = spec.further_model_types()
        except PluginError as error:
            warnings.warn(f"students of further models cannot be loaded: {error}", stacklevel=2)
            continue
        for model_type in set(further) - listed:
            AutoConfig.register(MODEL_TYPE_PREFIX + model_type, _deferred_config(model_type, plugins), exist_ok=True)


def _deferred_config(base_model_type: str, plugins: Plugins) -> Any:
    """Stands in AutoConfig's table until a configuration of that type is read; then the real classes take over."""

    def from_dict(cls: Any, config: dict[str, Any], /, **kwargs: Any) -> Any:
        return student_class(base_model_type, plugins).config_class.from_dict(config, **kwargs)

    return type("DeferredStudentConfig", (), {"from_dict": classmethod(from_dict), "__module__": __name__})


def _and_more(further: Mapping[str, Mapping[str, str]]) -> str:
    return "".join(f", and teacher '{name}' {len(types)} more" for name, types in further.items() if types)


def remote_classes(base_model_type: str, module: str) -> tuple[Any, Any]:
    """Configuration and model class for the code file in a student's folder, whose module is called ``module``."""
    del module
    student = student_class(base_model_type)
    return student.config_class, student


def remote_processor(target: str) -> Any:
    """The processor class "package.module:Class" of a teacher plug-in, for the same file."""
    Plugins.discover()
    return load_target(target, "the student's processor")
