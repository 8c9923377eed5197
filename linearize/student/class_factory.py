"""The classes of students, made at run time for each base model: transformers models that hold mixers."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from linearize.errors import CheckpointError, PluginError
from linearize.files.aligned import align_tensors
from linearize.files.owned_folder import give_default_modes
from linearize.files.strict_loading import refuse_wrong_tensors
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import load_target
from linearize.student.consistency import fp32_parameters, refuse_other_names, set_dtypes, set_ties
from linearize.student.convert import convert, linearized_sites, release_teacher
from linearize.student.description import build_mixers, read_description
from linearize.student.generation import with_stateful_generation
from linearize.student.remote_code import MODEL_MODULE, write_model_code
from linearize.student.state import STATE_DTYPES, dtype_name

MODEL_TYPE_PREFIX = "linearize_"
CONFIG = "config.json"
AUTO_CLASSES = tuple(
    getattr(transformers, name)
    for name in ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForMultimodalLM")
    if hasattr(transformers, name)
)


_LOADING_WITH: ContextVar[Plugins | None] = ContextVar("plugins of the student that is being loaded", default=None)
"""from_pretrained makes deep copies of what it is given, and plug-ins have modules in them."""


@functools.cache
def make_classes(target: str, base_model_type: str) -> Any:
    """The model class of students of one base, "package.module:Class"; its ``config_class`` is their configuration.

    Raises:
        PluginError: the target cannot be imported, or is no model of that type.
    """
    base = _base_class(target, base_model_type)
    config = _config_class(base.config_class, target)
    model = _model_class(base, config, target)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto in AUTO_CLASSES:
        auto.register(config, model, exist_ok=True)
    _name_to_transformers(model, base)
    return model


def _name_to_transformers(model: Any, base: Any) -> None:
    """Lets pipelines and ``transformers serve`` find a student's class, which they do by name.

    They look a class up among transformers' own attributes, and what a model takes in tables of names.
    """
    is_text = base.config_class in AutoModelForCausalLM._model_mapping
    is_text = is_text and base.config_class not in AutoModelForImageTextToText._model_mapping
    for table in ("CAUSAL_LM",) if is_text else ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
        names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})
        names[model.config_class.model_type] = model.__name__
    for copy_of_transformers in _copies_of_transformers():
        setattr(copy_of_transformers, model.__name__, model)


def _copies_of_transformers() -> list[ModuleType]:
    """The package transformers, as often as it is there.

    Its processing_utils imports it a second time and puts that in the first one's place (5.17 to 5.24); whoever
    imported it before, such as the server, keeps the first.
    """
    importlib.import_module("transformers.processing_utils")
    held = [vars(module).get("transformers") for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    found = [sys.modules["transformers"], transformers, *held]
    return list({id(one): one for one in found if getattr(one, "__name__", "") == "transformers"}.values())


def _made_again(target: str, base_model_type: str, what: str) -> Any:
    """An empty instance, for pickle: the classes are made at run time, so that no module has them by name."""
    Plugins.discover()  # in a checkout the classes of in-tree plug-ins can be imported from then on
    student = make_classes(target, base_model_type)
    made = student if what == "model" else student.config_class
    return made.__new__(made)


def _base_class(target: str, model_type: str) -> Any:
    base = load_target(target, f"the base model '{model_type}'")
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise PluginError(f"the base model '{model_type}' is said to be {target}; expected a PreTrainedModel class")
    found = getattr(base.config_class, "model_type", None)  # type: ignore[attr-defined]
    if found != model_type:
        raise PluginError(f"the base model {target} has model_type '{found}', not '{model_type}'")
    return base


def _config_class(base: Any, target: str) -> Any:
    class StudentConfig(base):
        """The base model's configuration, and what is a student's own.

        Attributes:
            linearize: a StudentDescription as plain data.
            state_dtype: in what memories of linear sites are kept from one call to the next; read when a cache is made.
        """

        model_type = MODEL_TYPE_PREFIX + base.model_type

        def __init__(
            self, linearize: dict[str, Any] | None = None, state_dtype: str = STATE_DTYPES[0], **kwargs: Any
        ) -> None:
            super().__init__(**kwargs)
            self.linearize = linearize
            self.state_dtype = state_dtype

        def __setattr__(self, key: str, value: Any) -> None:
            super().__setattr__(key, dtype_name(value) if key == "state_dtype" else value)  # config.json has names

        @classmethod
        def is_custom_code(cls) -> bool:
            # transformers before 5.18 renames layer types of other people's configurations, and its own models do not
            # know the new names.
            return bool(base.is_custom_code())

        @classmethod
        def register_for_auto_class(cls, auto_class: Any = None) -> None:
            """Nothing: save_pretrained writes the code file itself."""

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """Writes config.json, and beside it the code file that its ``auto_map`` names."""
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.auto_map = {"AutoConfig": f"{MODEL_MODULE}.StudentConfig"} | {
                auto.__name__: f"{MODEL_MODULE}.StudentModel" for auto in AUTO_CLASSES
            }
            # transformers takes the dtype of the first parameter, which may be one that is float32 among others.
            if dtype := (self.linearize or {}).get("dtype"):
                self.dtype = dtype
            write_model_code(Path(save_directory), base.model_type)
            super().save_pretrained(save_directory, *args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            _, _, *state = super().__reduce_ex__(protocol)
            return (_made_again, (target, base.model_type, "config"), *state)

    return _named(StudentConfig, base)


def _model_class(base: Any, config_type: Any, target: str) -> Any:
    class Student(with_stateful_generation(base)):  # type: ignore[misc]
        """The base model with mixers in its linear sites."""

        config_class = config_type
        _is_stateful = True
        _can_compile_fullgraph = False

        def __init__(self, config: PreTrainedConfig, *args: Any, plugins: Plugins | None = None, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            _install_mixers(self, config, plugins or _LOADING_WITH.get())
            self._names_as_made = frozenset(self.state_dict())

        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
            """Loads a saved student, and refuses a folder that lacks a tensor or has one too many.

            Args:
                plugins: where its mixers are registered; None: those that are installed.

            Raises:
                CheckpointError: a tensor is missing, surplus or misshapen, a file is damaged, or a mixer unknown.
            """
            token = _LOADING_WITH.set(kwargs.pop("plugins", None))
            wants_info = kwargs.pop("output_loading_info", False)
            kwargs = {"ignore_mismatched_sizes": True, **kwargs, "output_loading_info": True}
            try:
                model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            except SafetensorError as error:
                raise CheckpointError(
                    f"a weight file of {pretrained_model_name_or_path} is damaged or cut short: {error}. "
                    "Copy or save it anew."
                ) from error
            finally:
                _LOADING_WITH.reset(token)
            refuse_wrong_tensors(f"the student in {pretrained_model_name_or_path}", info)
            align_tensors(model)
            return (model, info) if wants_info else model

        @classmethod
        def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
            """Nothing: save_pretrained writes the code file itself."""

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """As every transformers model; what would not come back is refused.

            Raises:
                ValueError: see ``save_student``, which writes a model card too and leaves other files alone.
            """
            if not (getattr(self, "hf_quantizer", None) or getattr(self, "_hf_peft_config_loaded", False)):
                # Both of these transformers saves in ways of its own, and reads again.
                refuse_other_names(self._names_as_made, kwargs.get("state_dict") or self.state_dict())
            set_ties(self, self.state_dict())
            set_dtypes(self)
            generation = vars(self)["generation_config"]
            folder = Path(save_directory)
            self.generation_config = _UncheckedGeneration.of(generation)
            try:
                super().save_pretrained(save_directory, *args, **kwargs)
            finally:
                self.generation_config = generation
            if (folder / CONFIG).is_file():
                give_default_modes(list(folder.glob("model*.safetensors")), like=folder / CONFIG)

        def __reduce_ex__(self, protocol: Any) -> Any:
            _, _, *state = super().__reduce_ex__(protocol)
            return (_made_again, (target, base.config_class.model_type, "model"), *state)

    return _named(Student, base)


def _named(made: Any, base: Any) -> Any:
    made.__name__ = made.__qualname__ = f"Linearized{base.__name__}"
    return made


class _UncheckedGeneration(GenerationConfig):
    """A generation configuration that is saved as it is.

    transformers reads one that holds options without effect, such as a temperature for greedy decoding, and refuses to
    write it.
    """

    @classmethod
    def of(cls, generation: GenerationConfig) -> _UncheckedGeneration:
        """The same configuration."""
        made = cls.__new__(cls)
        made.__dict__ = generation.__dict__
        return made

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes generation_config.json."""
        del args, kwargs
        self.to_json_file(str(Path(save_directory) / "generation_config.json"), use_diff=True)


def _install_mixers(model: Any, config: Any, plugins: Plugins | None) -> None:
    """Swaps the mixers in that the configuration describes, as part of a student's constructor."""
    description = read_description(config.linearize)
    mixers = build_mixers(description, plugins)
    try:
        convert(model, [entry.to_site() for entry in description.sites], mixers)
    except ValueError as error:
        raise CheckpointError(f"the configuration's sites do not fit a {type(model).__name__}: {error}") from error
    release_teacher(model)
    model.requires_grad_(True)
    # post_init has made this instance's own set in the base's constructor.
    model._keep_in_fp32_modules_strict |= {re.escape(name) for name in description.float32}
    for slot in linearized_sites(model):
        mixer: Any = slot.mixer
        slot.stored_dtypes()  # what is no dtype is refused here, not with the first token
        _make_buffers_persistent(mixer)
        model._keep_in_fp32_modules_strict |= {f"{slot.site.path}.mixer.{name}" for name in fp32_parameters(mixer)}
        if not any(parameter.is_meta for parameter in mixer.parameters()):
            device = next(mixer.parameters()).device
            mixer.initialize("scratch", torch.Generator(device).manual_seed(slot.site.index))


def _make_buffers_persistent(mixer: nn.Module) -> None:
    """from_pretrained builds on the meta device and leaves buffers that no file holds as uninitialised memory."""
    for module in mixer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=True)
