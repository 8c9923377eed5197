"""A new mixer's package passes its tests at once, as a stranger would run them: built, installed, elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT, environment, python
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.errors import PluginError
from linearize.scaffold import mixer_files, new_mixer
from linearize.testing import MixerConformance

pytestmark = pytest.mark.slow


def test_a_new_mixer_is_installed_from_its_own_wheel_and_passes_the_kit(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    made = CliRunner().invoke(app, ["new", "mixer", "slow_memory", "--to", str(tmp_path)])
    assert made.exit_code == 0, made.output
    folder, installed = tmp_path / "linearize_slow_memory", tmp_path / "installed"
    assert str(folder) in made.stdout
    built = shell(["-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    tested = shell(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests")], tmp_path, installed)
    assert tested.returncode == 0, tested.stdout
    # Every check with each of 3 option tables; there is no reference yet.
    checks = sum(name.startswith("test_") for name in dir(MixerConformance))
    assert f"{3 * (checks - 1)} passed, 3 skipped" in tested.stdout
    listed = shell(["-m", "linearize", "plugins", "--json"], tmp_path, installed)
    plugin = next(plugin for plugin in json.loads(listed.stdout) if plugin["name"] == "slow_memory")
    assert (plugin["origin"], plugin["version"], plugin["failure"]) == ("linearize-slow-memory", "0.1.0", "")


def shell(arguments: list[str], cwd: Path, installed: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process that sees this checkout, and the folder of an installed package."""
    return python(*arguments, cwd=cwd, env=environment(*([installed] if installed else [])))


def test_the_test_file_is_ten_lines() -> None:
    assert len(mixer_files("slow_memory")["tests/test_slow_memory.py"].splitlines()) <= 10


def test_new_code_is_formatted_and_lint_free(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    folder = new_mixer("slow_memory", tmp_path)
    for command in (["check", "--ignore", "D101"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, "--no-cache", "--config", str(ROOT / "pyproject.toml"), str(folder)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Slow", "slow-memory", "class", "3d"])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="lower_snake_case"):
        new_mixer(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"plug-in 'gated' brings a mixer 'gla' already"):
        new_mixer("gla", tmp_path)
    new_mixer("slow_memory", tmp_path)
    with pytest.raises(PluginError, match="linearize_slow_memory is there already"):
        new_mixer("slow_memory", tmp_path)
