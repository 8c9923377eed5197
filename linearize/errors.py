"""The errors that a person reads: what was asked, what was found, what would be right, what to do next.

The command line prints these without a traceback. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class LinearizeError(Exception):
    """Something that the user can put right; its text says how."""


class RecipeError(LinearizeError):
    """Every problem of a recipe at once, each behind its TOML path."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.name = name
        self.problems = tuple(problems)
        super().__init__(f"{name} has problems:\n" + "\n".join(f"  - {problem}" for problem in problems))


class UnknownNameError(LinearizeError):
    """A component was asked for by a name that no installed plug-in registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name = kind, name
        names = sorted(known)
        message = f"unknown {kind} '{name}'.{did_you_mean(name, names)} Installed: {', '.join(names) or 'none'}."
        super().__init__(f"{message} {hint}".rstrip())


class PluginError(LinearizeError):
    """A plug-in that the run needs is missing, broken or in conflict with another."""


class CheckpointError(LinearizeError):
    """A checkpoint or model folder cannot be read, or is not what the recipe says it is."""


class DataError(LinearizeError):
    """Training or evaluation data cannot be used as the recipe asks."""


class RunError(LinearizeError):
    """A run cannot start or go on in its folder."""


class BackendError(LinearizeError):
    """A kernel backend was asked for that this machine cannot run, or that would compute wrong numbers here."""


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
    near = difflib.get_close_matches(missing.name, whole or names, n=1, cutoff=0.6)
    return f" Did you mean '{missing.with_name(near[0]) / (rest if whole else '')}'?" if near else ""
