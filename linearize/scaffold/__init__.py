"""New plug-in packages: files to start from, whose tests pass at once."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from linearize.errors import PluginError
from linearize.plugin.discovery import Plugins

COMMON_FILES: Mapping[str, str] = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "$kind/README.md.txt",
    "linearize_$name/__init__.py": "$kind/init.py.txt",
    "linearize_$name/py.typed": "py.typed.txt",
    "linearize_$name/config.py": "$kind/config.py.txt",
    "tests/test_$name.py": "$kind/test_$kind.py.txt",
}
"""Path in the new package -> template beside this module; ``$name`` and ``$kind`` are filled in in paths and texts."""

OWN_FILES: Mapping[str, tuple[str, ...]] = {
    "mixer": ("linearize_$name/mixer.py",),
    "teacher": (
        "recipe.toml",
        "linearize_$name/model.py",
        "linearize_$name/attention.py",
        "linearize_$name/processing.py",
        "linearize_$name/tiny.py",
        "linearize_$name/adapter.py",
    ),
}
"""Kind -> what its packages have beside that; templates in the kind's folder."""


def new_mixer(name: str, parent: Path) -> Path:
    """Writes the package of a mixer called ``name`` into a new folder ``linearize_<name>`` of ``parent``.

    Returns the folder.

    Raises:
        PluginError: the name cannot be one, or is taken; or the folder is there already.
    """
    return _write("mixer", name, parent)


def new_teacher(name: str, parent: Path) -> Path:
    """The same for a teacher; its model type in transformers is ``name`` too.

    Raises:
        PluginError: as for a mixer, or transformers has models of that type.
    """
    _refuse_name("teacher", name)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if name in CONFIG_MAPPING_NAMES:
        raise PluginError(
            f"a teacher cannot be called '{name}': transformers has models of that type, which the new ones would "
            f"hide; choose another name, such as 'my_{name}', or try teacher.type = \"transformers\""
        )
    return _write("teacher", name, parent)


def mixer_files(name: str) -> dict[str, str]:
    """Path -> text of every file of a new mixer's package."""
    return _files("mixer", name)


def teacher_files(name: str) -> dict[str, str]:
    """Path -> text of every file of a new teacher's package."""
    return _files("teacher", name)


def _write(kind: str, name: str, parent: Path) -> Path:
    _refuse_name(kind, name)
    folder = parent / f"linearize_{name}"
    if folder.exists():
        raise PluginError(f"{folder} is there already; choose another name, or another place with --to")
    for path, text in _files(kind, name).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


def _refuse_name(kind: str, name: str) -> None:
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name):
        raise PluginError(f"a {kind} cannot be called '{name}'; names are lower_snake_case, such as 'my_{kind}'")
    for record in Plugins.discover().records:
        if any(spec.kind == kind and spec.name == name for spec in record.specs):
            raise PluginError(f"plug-in '{record.name}' brings a {kind} '{name}' already; choose another name")
        if record.name == name:
            raise PluginError(f"a plug-in '{name}' is installed already; choose another name")


def _files(kind: str, name: str) -> dict[str, str]:
    fill = {
        "kind": kind,
        "name": name,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "dashed": name.strip("_").replace("_", "-"),
    }

    def filled(text: str) -> str:
        return Template(text).substitute(fill)

    sources = {**COMMON_FILES, **{path: f"$kind/{path.rpartition('/')[2]}.txt" for path in OWN_FILES[kind]}}
    templates = files("linearize.scaffold")
    return {
        filled(path): filled((templates / filled(source)).read_text(encoding="utf-8"))
        for path, source in sources.items()
    }
