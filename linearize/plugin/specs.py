"""Specs: frozen data that describe a component before any of its code is imported.

``build`` and ``config`` are "package.module:object" strings, so registering a component costs no import.
``source`` is the paper or repository that the component comes from; it is required.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from linearize.errors import PluginError
from linearize.plugin.config import Config


class NoOptions(Config):
    """The configuration of a component that has no options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One named component of one kind.

    Each kind names the protocol that its components follow, as a "package.module:object" string like the others.

    Attributes:
        name: what a recipe writes behind ``type =``; lower_snake_case, unique within its kind.
        build: the callable that makes the component; each kind below says with which arguments.
        config: the pydantic model of the component's options.
        source: URL of the paper or code that defines the component.
        summary: one line for ``linearize plugins``.
    """

    kind: ClassVar[str] = "component"
    protocol: ClassVar[str] = ""

    name: str
    build: str
    source: str
    config: str = "linearize.plugin.specs:NoOptions"
    summary: str = ""

    def config_class(self) -> type[Config]:
        """The pydantic model of this component's options; imports the plug-in module that holds it."""
        model = load_target(self.config, f"{self.kind} '{self.name}'")
        if not (isinstance(model, type) and issubclass(model, Config)):
            raise PluginError(
                f"{self.kind} '{self.name}' names {self.config} as its config; expected a linearize Config"
            )
        return model

    def builder(self) -> Any:
        """The callable behind ``build``; imports the plug-in module that holds it.

        Raises:
            PluginError: it cannot be imported, or is nothing to call.
        """
        builder = load_target(self.build, f"{self.kind} '{self.name}'")
        if not callable(builder):
            raise PluginError(
                f"{self.kind} '{self.name}' names {self.build} as its build; expected a class or function, got "
                f"{builder!r}"
            )
        return builder

    def package(self) -> str:
        """Name of the package that holds ``build``."""
        return self.build.partition(":")[0].partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec(Spec):
    """``build(config) -> TeacherAdapter``.

    Attributes:
        model_types: the models that ``load`` returns, ``config.model_type`` -> "package.module:ModelClass"; a saved
            student builds on that class. Importing the module makes AutoProcessor know the family's processor.
        model_types_from: for a teacher whose models cannot be listed here, "package.module:function"; the function
            takes nothing and returns such a mapping. It is called when a student is saved or loaded, so it may import
            what it likes. A type that some teacher lists in ``model_types`` is that teacher's.
        shapes: sizes of models that can be measured without weights, name -> "package:folder"; the folder inside the
            package holds a config.json and is what the teacher's option ``checkpoint`` then names. The adapter has
            ``random_model``.
    """

    kind: ClassVar[str] = "teacher"
    protocol: ClassVar[str] = "linearize.protocols:TeacherAdapter"

    model_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    model_types_from: str = ""
    shapes: Mapping[str, str] = field(default_factory=dict, hash=False)

    def further_model_types(self) -> Mapping[str, str]:
        """What ``model_types_from`` gives; empty without it.

        Raises:
            PluginError: the function cannot be imported, or gives no mapping.
        """
        if not self.model_types_from:
            return {}
        found = load_target(self.model_types_from, f"teacher '{self.name}'")()
        if not isinstance(found, Mapping):
            raise PluginError(
                f"teacher '{self.name}' names {self.model_types_from}, which returned a {type(found).__name__}; "
                "expected a mapping of model_type to 'package.module:ModelClass'"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerSpec(Spec):
    """``build(config, site) -> Mixer``."""

    kind: ClassVar[str] = "mixer"
    protocol: ClassVar[str] = "linearize.protocols:Mixer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeederSpec(Spec):
    """``build(config) -> Seeder``."""

    kind: ClassVar[str] = "seeder"
    protocol: ClassVar[str] = "linearize.protocols:Seeder"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSpec(Spec):
    """``build(config) -> Layout``."""

    kind: ClassVar[str] = "layout"
    protocol: ClassVar[str] = "linearize.protocols:Layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec(Spec):
    """``build(config) -> Objective``."""

    kind: ClassVar[str] = "objective"
    protocol: ClassVar[str] = "linearize.distill.objectives:Objective"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec(Spec):
    """``build(config) -> Schedule``: the stages that a recipe starts from."""

    kind: ClassVar[str] = "schedule"
    protocol: ClassVar[str] = "linearize.protocols:Schedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec(Spec):
    """``build(config) -> DataSource``."""

    kind: ClassVar[str] = "data"
    protocol: ClassVar[str] = "linearize.protocols:DataSource"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSpec(Spec):
    """``build(config) -> Benchmark``: questions with answers, in tasks."""

    kind: ClassVar[str] = "benchmark"
    protocol: ClassVar[str] = "linearize.protocols:Benchmark"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSpec(Spec):
    """``build(config) -> Evaluator``: a further look at the finished student."""

    kind: ClassVar[str] = "evaluator"
    protocol: ClassVar[str] = "linearize.protocols:Evaluator"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec(Spec):
    """``build(config) -> CheckpointFormat``: a student format that another project published.

    Attributes:
        model_types: values of ``model_type`` in a folder's config.json that this format reads.
    """

    kind: ClassVar[str] = "format"
    protocol: ClassVar[str] = "linearize.protocols:CheckpointFormat"

    model_types: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec(Spec):
    """``build`` is the kernel itself: it takes and returns what the torch reference of ``operation`` does.

    Attributes:
        operation: what it computes, as :mod:`linearize.ops.backends` names it.
        backend: what a recipe writes behind ``backend =``; one kernel for each operation of a backend.
        obstacle: "package.module:function", called with operation and device type ("cuda") before ``build`` is
            imported; it returns why the kernel cannot be used there, "" where it can, and raises BackendError where the
            kernel is there and would compute wrong numbers. Without it the kernel runs everywhere.
        distribution: the package whose version is printed with it.
        preference: "auto" takes the usable kernel with the largest; the torch reference has 0.
        step_preference: the same for a call with one token. A kernel that runs inside a compiled step and is faster
            there than what the compiler makes of the reference gives a positive number.
    """

    kind: ClassVar[str] = "kernel"
    protocol: ClassVar[str] = ""

    operation: str
    backend: str
    obstacle: str = ""
    distribution: str = ""
    preference: int = 1
    step_preference: int = -1


KINDS: tuple[type[Spec], ...] = (
    TeacherSpec, MixerSpec, SeederSpec, LayoutSpec, ObjectiveSpec, ScheduleSpec, DataSpec, BenchmarkSpec,
    EvaluatorSpec, FormatSpec, KernelSpec,
)  # fmt: skip


def load_target(target: str, owner: str) -> Any:
    """The object that "package.module:object" names.

    Raises:
        PluginError: the module cannot be imported, or has no such object; names the owner and the cause.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise PluginError(f"{owner} needs {target}, whose import failed: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PluginError(f"{owner} needs {target}, but module {module_name} has no '{attribute}'") from None
