"""The one place where a fault of a plug-in's code becomes a message that names the plug-in.

A component refuses what a recipe asks by raising ValueError or an error of ``linearize.errors``: a problem of the
recipe. Anything else that escapes from it, and a member of its protocol that it lacks, is a fault of the plug-in.
"""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linearize.errors import LinearizeError, PluginFault

UNFORESEEN = (UnicodeError, json.JSONDecodeError)
"""ValueErrors that libraries raise about bytes and texts; nobody wrote them to be read with a recipe."""


@contextmanager
def guarded(component: str, package: str, *, may_refuse: bool = True) -> Iterator[None]:
    """Runs a component's code; what it refuses passes, anything else becomes a PluginFault.

    Args:
        may_refuse: whether a ValueError is the component's answer to what a recipe asks, and passes. Once the recipe is
            checked it is a fault like any other.
        component: what the message calls it, such as "layout 'thirds' of plug-in 'mine'".
        package: name of the package that its code is in, to find the line that failed.
    """
    try:
        yield
    except LinearizeError:
        raise
    except Exception as error:
        if may_refuse and isinstance(error, ValueError) and not isinstance(error, UNFORESEEN):
            raise
        raise PluginFault(component, f"{type(error).__name__}: {error}", _place(error, package)) from error


def require_members(built: object, protocol: type, component: str) -> None:
    """Passes a component that has all that its protocol names.

    Raises:
        PluginFault: something is missing, or no method where one is expected; names it and all that is expected.
    """
    expected = protocol_members(protocol)
    missing = [
        name for name, is_method in expected.items()
        if not hasattr(built, name) or (is_method and not callable(getattr(built, name)))
    ]  # fmt: skip
    if missing:
        raise PluginFault(
            component,
            f"its {type(built).__name__} lacks {', '.join(f'`{name}`' for name in missing)}; a {protocol.__name__} has "
            f"{', '.join(f'`{name}`' for name in expected)} (see linearize.protocols)",
        )


def protocol_members(protocol: type) -> dict[str, bool]:
    """Names of a protocol's members, and whether each is a method."""
    members: dict[str, bool] = dict.fromkeys(inspect.get_annotations(protocol), False)
    for name, value in protocol.__dict__.items():
        if name == "__getitem__" or not name.startswith("_"):
            members[name] = callable(value)
    return members


def _place(error: Exception, package: str) -> str:
    """The last line of the plug-in's own code that ran; of any code where none of it did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if package in Path(frame.filename).parts or Path(frame.filename).stem == package]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}, line {frame.lineno}"
