"""Components with their checked options, also as an option of other components.

A mixer that contains another one names it in its options, and never imports it:

    class PairConfig(Config):
        linear: MixerComponent = Field(description="The linear mixer: a table with its `type` and its options.")

    self.linear = config.linear.build(site)

A recipe then says ``linear = { type = "gla", rope = false }``; what is wrong with that table is told by its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import SerializationInfo, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from linearize.errors import LinearizeError
from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.guard import guarded, require_members
from linearize.plugin.problems import DESCRIBED, Finding, find_problems
from linearize.plugin.specs import DataSpec, MixerSpec, Spec, load_target

PLUGINS = "plugins"
COMPONENT_KEY = "x-component"
"""Key of a JSON Schema that stands for any component of one kind, which only the registered plug-ins know."""


@dataclass(frozen=True, slots=True)
class ResolvedComponent:
    """One component with its checked options.

    Attributes:
        plugin: name of the plug-in that brings it; "" where nobody asked.
    """

    spec: Spec
    config: Config
    plugin: str = ""

    @property
    def title(self) -> str:
        """ "layout 'thirds' of plug-in 'mine'": what messages call it."""
        return f"{self.spec.kind} '{self.spec.name}'" + (f" of plug-in '{self.plugin}'" if self.plugin else "")

    def build(self, *args: Any) -> Any:
        """The component itself; imports its plug-in's code.

        Raises:
            PluginFault: it fails in another way than by ValueError or an error of ours, or lacks what its protocol has.
        """
        with self.guarded():
            built = self.spec.builder()(self.config, *args)
            require_members(built, load_target(self.spec.protocol, self.title), self.title)
        return built

    def guarded(self, *, may_refuse: bool = True) -> AbstractContextManager[None]:
        """Inside, code of the component runs: what escapes from it becomes a message that names the plug-in.

        Args:
            may_refuse: see ``linearize.plugin.guard.guarded``.
        """
        return guarded(self.title, self.spec.package(), may_refuse=may_refuse)

    def table(self) -> dict[str, Any]:
        """The component as a TOML table, defaults written out."""
        return {"type": self.spec.name, **self.config.model_dump(mode="json", exclude_none=True)}


def component_types(table: Mapping[str, Any]) -> Iterator[str]:
    """The type of a component's table, and those of the components in it."""
    yield str(table["type"])
    for option in table.values():
        if isinstance(option, Mapping) and "type" in option:
            yield from component_types(option)


def component_title(table: Mapping[str, Any]) -> str:
    """ "swa_linear (gla)": the same for people."""
    own, *inner = component_types(table)
    return f"{own} ({', '.join(inner)})" if inner else own


def read_options(model: type[Config], table: Mapping[str, Any], plugins: Plugins) -> Config:
    """The options in a table; components inside it are those of ``plugins``.

    Raises:
        ValidationError: of pydantic; a component inside that is unknown or has wrong options is part of it.
        PluginFault: code of the model, such as a validator, fails in another way.
    """
    with guarded(f"the options {model.__name__}", model.__module__.partition(".")[0]):
        return model.model_validate(table, context={PLUGINS: plugins})


class ComponentOf:
    """Annotates a field that holds a component of one kind: a table with ``type``, a ResolvedComponent once checked.

    Outside ``read_options`` the installed plug-ins are asked.
    """

    def __init__(self, kind: type[Spec]) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(_serialize, info_arg=True)
        )

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {COMPONENT_KEY: self.kind.kind}

    def _validate(self, value: Any, info: ValidationInfo) -> ResolvedComponent:
        if isinstance(value, ResolvedComponent) and isinstance(value.spec, self.kind):
            return value
        if not isinstance(value, Mapping):
            text = f"expected a table with the `type` of a {self.kind.kind}; got {value!r}"
            raise _described([Finding((), text, value, "table_type")])
        if not isinstance(value.get("type"), str):
            raise _described([Finding(("type",), "is required", None, "missing")])
        plugins = (info.context or {}).get(PLUGINS) or Plugins.discover()
        try:
            spec = plugins.registry.get(self.kind, value["type"], plugins.failures_hint())
            model = spec.config_class()
        except LinearizeError as error:
            raise _described([Finding(("type",), str(error), value["type"], error.code)]) from None
        try:
            options = read_options(model, {k: v for k, v in value.items() if k != "type"}, plugins)
            return ResolvedComponent(spec, options, plugins.registry.owner(spec))
        except ValidationError as error:
            raise _described(find_problems(error, model)) from None


MixerComponent = Annotated[ResolvedComponent, ComponentOf(MixerSpec)]
"""A mixer as an option of another."""


DataComponent = Annotated[ResolvedComponent, ComponentOf(DataSpec)]
"""A data source as an option of another."""


def named(type: str, **options: Any) -> Any:
    """The default of such a field, as a recipe would say it."""
    return {"type": type, **options}


def _serialize(component: ResolvedComponent, info: SerializationInfo) -> dict[str, Any]:
    options = component.config.model_dump(
        mode=info.mode, exclude_none=info.exclude_none, exclude_defaults=info.exclude_defaults
    )
    return {"type": component.spec.name, **options}


def _described(findings: Iterable[Finding]) -> ValidationError:
    """An error whose items pydantic puts below the field's own path."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError(DESCRIBED, "{text}", {"text": text, "code": code}), loc=location, input=found
        )
        for location, text, found, code in findings
    ]
    return ValidationError.from_exception_data("component", details)
