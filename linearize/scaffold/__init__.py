"""New plug-in packages: files to start from, whose tests pass at once."""

from __future__ import annotations

import keyword
from importlib.resources import files
from pathlib import Path
from string import Template

from linearize.errors import PluginError
from linearize.plugins import Plugins
from linearize.specs import MixerSpec

MIXER_FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "linearize_$name/__init__.py": "init.py.txt",
    "linearize_$name/py.typed": None,
    "linearize_$name/config.py": "config.py.txt",
    "linearize_$name/mixer.py": "mixer.py.txt",
    "tests/test_$name.py": "test_mixer.py.txt",
}
"""Path in the new package -> template beside this module; None: an empty file. ``$name`` is filled in in both."""


def new_mixer(name: str, parent: Path) -> Path:
    """Writes the package of a mixer called ``name`` into a new folder ``linearize_<name>`` of ``parent``.

    Returns the folder.

    Raises:
        PluginError: the name cannot be one, or an installed mixer has it; or the folder is there already.
    """
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name):
        raise PluginError(f"a mixer was to be called '{name}'; names are lower_snake_case, such as 'my_mixer'")
    for record in Plugins.discover().records:
        if any(isinstance(spec, MixerSpec) and spec.name == name for spec in record.specs):
            raise PluginError(f"plug-in '{record.name}' brings a mixer '{name}' already; choose another name")
    folder = parent / f"linearize_{name}"
    if folder.exists():
        raise PluginError(f"{folder} is there already; choose another name, or another place with --to")
    for path, text in mixer_files(name).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


def mixer_files(name: str) -> dict[str, str]:
    """Path -> text of every file of a new mixer's package."""
    fill = {
        "name": name,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "dashed": name.strip("_").replace("_", "-"),
    }
    templates = files("linearize.scaffold") / "mixer"
    return {
        Template(path).substitute(fill): ""
        if template is None
        else Template((templates / template).read_text(encoding="utf-8")).substitute(fill)
        for path, template in MIXER_FILES.items()
    }
