"""torch's compiler, whose code is executed when something is compiled and not as soon as somebody mentions it.

Models of transformers decorate functions for the compiler, and torch keeps much of what it computes on the meta device
from it. Where nothing is compiled, its import would take as long as all the rest of ``linearize check``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"
NEEDS_NO_OTHER = "torch._dynamo._trace_wrapped_higher_order_op"
"""What transformers imports of it wherever it makes masks; the only submodule that stands without the others."""


def put_off_the_compiler() -> None:
    """From here on ``torch._dynamo`` can be imported, but its code waits until something of it is used.

    importlib's LazyLoader would not wait for more than the first import of a submodule.
    """
    import torch

    spec = None if NAME in sys.modules else importlib.util.find_spec(NAME)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Compiler
    sys.modules[NAME] = module
    torch._dynamo = module  # as importing it does
    if importlib.util.find_spec(NEEDS_NO_OTHER) is not None:
        importlib.import_module(NEEDS_NO_OTHER)
    vars(module).pop("__path__", None)  # asked for by the import of any other submodule, for which it is executed


class _Compiler(ModuleType):
    """The module before it was executed. Asked for anything else than to leave a function alone, it becomes itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_executed(self), name)

    def allow_in_graph(self, function: Any) -> Any:
        """Noted for the real one."""
        return _noted(self, "allow_in_graph", function)

    def assume_constant_result(self, function: Any) -> Any:
        """Noted for the real one."""
        return _noted(self, "assume_constant_result", function)

    def disable(self, function: Any = None, recursive: bool = True, **options: Any) -> Any:
        """A function that is kept from the compiler as soon as there is one."""
        if function is None:
            return functools.partial(_Compiler.disable, self, recursive=recursive, **options)
        if not inspect.isfunction(function):
            return _executed(self).disable(function, recursive, **options)
        return _disabled(self, function, recursive, options)


def _executed(module: ModuleType) -> Any:
    """The real module."""
    if not isinstance(module, _Compiler):
        return module
    real: Any = module
    noted = vars(real).pop("_noted", [])
    real.__class__ = ModuleType
    real.__path__ = real.__spec__.submodule_search_locations
    real.__spec__.loader.exec_module(real)
    for name, function in noted:
        getattr(real, name)(function)
    return real


def _noted(module: Any, name: str, function: Any) -> Any:
    if not isinstance(module, _Compiler):
        return getattr(module, name)(function)
    module.__dict__.setdefault("_noted", []).append((name, function))
    return function


def _disabled(module: Any, function: Callable[..., Any], recursive: bool, options: dict[str, Any]) -> Any:
    real: Any = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal real
        if isinstance(module, _Compiler):
            return function(*args, **kwargs)
        if real is None:
            real = module.disable(function, recursive, **options)
        return real(*args, **kwargs)

    return call
