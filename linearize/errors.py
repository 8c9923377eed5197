"""The errors that a person reads: what was asked, what was found, what would be right, what to do next.

The command line prints these without a traceback. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

TRACEBACK_VARIABLE = "LINEARIZE_TRACEBACK"
"""Environment variable; set to anything, errors come with their tracebacks."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a recipe.

    Attributes:
        path: TOML path with entries of lists by name, such as "stages.distill.lr"; "" for the file as a whole.
        text: what was expected, what was found, what to do next; whole without the path.
        found: the value that stands there; None where there is none.
        code: what is wrong, for programs: "missing", "unknown_key", "unknown_name", the ``code`` of a LinearizeError,
            "value_error" of a component that raised ValueError, or pydantic's type of the error.
        scope: which of several recipes has it, such as "cell 'gla'"; "" where there is one.
    """

    path: str
    text: str
    found: Any = None
    code: str = "invalid"
    scope: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.scope, self.path, self.text)))


class LinearizeError(Exception):
    """Something that the user can put right; its text says how.

    Args:
        option: key of the component's own table that is at fault, such as "checkpoint"; "" where no single one is.
        found: the value that the option has.
    """

    code: ClassVar[str] = "error"

    def __init__(self, text: str = "", *, option: str = "", found: Any = None) -> None:
        super().__init__(f"{option}: {text}" if option else text)
        self.text, self.option, self.found = text, option, found

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take other arguments than the text; a process hands an error to another as it is.
        return _as_it_was, (type(self), self.args, self.__dict__)

    def problem(self, path: str) -> Problem:
        """The same as a problem of the component's table at ``path``."""
        return Problem(f"{path}.{self.option}" if self.option else path, self.text, self.found, self.code)


def _as_it_was(kind: type[LinearizeError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> LinearizeError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class RecipeError(LinearizeError):
    """Every problem of a recipe at once, each behind its TOML path."""

    code = "recipe"

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = tuple(problems)
        super().__init__(f"{name} has problems:\n" + "\n".join(f"  - {problem}" for problem in problems))


class UnknownNameError(LinearizeError):
    """A component was asked for by a name that no installed plug-in registered."""

    code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name = kind, name
        names = sorted(known)
        message = f"unknown {kind} '{name}'.{did_you_mean(name, names)} Installed: {', '.join(names) or 'none'}."
        super().__init__(f"{message} {hint}".rstrip(), found=name)


class PluginError(LinearizeError):
    """A plug-in that the run needs is missing, broken or in conflict with another."""

    code = "plugin"


class PluginFault(PluginError):
    """A component of a plug-in failed in a way that it does not announce, or lacks a member of its protocol.

    Args:
        component: "layout 'thirds' of plug-in 'mine'".
        fault: what happened.
        place: file and line of the plug-in; "" where there is none.
    """

    code = "plugin_fault"

    def __init__(self, component: str, fault: str, place: str = "") -> None:
        self.component = component
        advice = "Look at its options; if they are right, this is a fault of the plug-in"
        trace = f" ({TRACEBACK_VARIABLE}=1 shows the traceback)" if place else ""
        super().__init__(f"{component} failed: {fault}{f', in {place}' if place else ''}. {advice}{trace}")


class CheckpointError(LinearizeError):
    """A checkpoint or model folder cannot be read, or is not what the recipe says it is."""

    code = "checkpoint"


class DataError(LinearizeError):
    """Training or evaluation data cannot be used as the recipe asks."""

    code = "data"


class RunError(LinearizeError):
    """A run cannot start or go on in its folder."""

    code = "run"


class BackendError(LinearizeError):
    """A kernel backend was asked for that this machine cannot run, or that would compute wrong numbers here."""

    code = "backend"


def entry_name(entry: Any) -> str:
    """The name of a list's entry, such as a stage's; "" where it has none."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion such as " Did you mean 'mamba2'?", or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def did_you_mean_path(name: str | Path) -> str:
    """The same for a path: the nearest name that lies where its first missing part was looked for."""
    missing, rest = Path(name), Path()
    while missing.name and not missing.parent.expanduser().exists():
        missing, rest = missing.parent, Path(missing.name) / rest
    if missing.expanduser().exists():
        return ""
    try:
        names = [child.name for child in missing.parent.expanduser().iterdir()]
    except OSError:
        return ""
    whole = [near for near in names if (missing.with_name(near) / rest).expanduser().exists()]
    # What a name shares with another by its ending alone, such as ".toml", makes them no nearer.
    stems = difflib.get_close_matches(missing.stem, {Path(near).stem for near in whole or names}, cutoff=0.6)
    alike = [near for near in whole or names if Path(near).stem in stems]
    near = difflib.get_close_matches(missing.name, alike, n=1, cutoff=0.6)
    return f" Did you mean '{missing.with_name(near[0]) / (rest if whole else '')}'?" if near else ""
