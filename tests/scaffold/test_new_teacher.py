"""A new teacher's package stands beside linearize as a stranger's would: installed by pip, found, tested, run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.errors import PluginError
from linearize.scaffold import new_mixer, new_teacher, teacher_files

pytestmark = pytest.mark.slow


# That the tests of a new package pass before a line was changed: tests/scaffold/test_write_a_teacher.py.


def test_a_new_teacher_and_a_new_mixer_are_installed_as_distributions_and_run_together(author: Any) -> None:
    new_teacher("plain", author.folder)
    new_mixer("slow_memory", author.folder)
    author.types("""
        pip install ./linearize_plain ./linearize_slow_memory
        mv linearize_plain/recipe.toml .
        rm -r linearize_plain linearize_slow_memory
    """)
    plugins = {plugin["name"]: plugin for plugin in json.loads(author.types("linearize plugins --json"))}
    for name in ("plain", "slow_memory"):
        found = plugins[name]
        dashed = name.replace("_", "-")
        assert (found["origin"], found["version"], found["failure"]) == (f"linearize-{dashed}", "0.1.0", "")
    printed = author.types(
        "linearize run recipe.toml --set student.mixer.type=slow_memory --set evaluate.benchmarks=[]"
    )
    assert "teacher  plain: 2 sites" in printed
    config = json.loads((author.folder / "runs" / "plain" / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "linearize_plain"
    assert [mixer["plugin"] for mixer in config["linearize"]["mixers"]] == ["slow_memory 0.1.0"] * 2


def test_the_command_says_where_the_package_is(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["new", "teacher", "plain", "--to", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert f"pytest {tmp_path / 'linearize_plain'}" in made.stdout
    written = {path.relative_to(tmp_path / "linearize_plain").as_posix(): path.read_text(encoding="utf-8")
               for path in (tmp_path / "linearize_plain").rglob("*") if path.is_file()}  # fmt: skip
    assert written == teacher_files("plain")


def test_new_code_is_formatted_and_lint_free(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    folder = new_teacher("plain", tmp_path)
    configuration = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), str(folder)]
    # I001: how imports are sorted depends on where a package lies.
    for command in (["check", "--ignore", "D101,D102,I001"], ["format", "--check"]):
        done = subprocess.run([ruff, *command, *configuration], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_readme_names_every_module(tmp_path: Path) -> None:
    files = teacher_files("plain")
    modules = {path for path, text in files.items() if path.startswith("linearize_plain/") and text}
    assert {path for path in modules if f"`{path}`" in files["README.md"]} == modules


@pytest.mark.parametrize("name", ["Plain", "my-model", "class"])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="lower_snake_case, such as 'my_teacher'"):
        new_teacher(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("hovle", "plug-in 'hovle' brings a teacher 'hovle' already"),
        ("glance", "a plug-in 'glance' is installed already"),
        ("llama", "transformers has models of that type, which the new ones would hide"),
    ],
)
def test_a_name_that_would_hide_something_is_refused(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=why):
        new_teacher(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_mixer_may_be_called_like_a_model_of_transformers_but_not_like_a_plugin(tmp_path: Path) -> None:
    new_mixer("llama", tmp_path)
    with pytest.raises(PluginError, match="a plug-in 'glance' is installed already"):
        new_mixer("glance", tmp_path)
