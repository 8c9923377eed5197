"""An environment of its own, as a plug-in's author has one: linearize is there, and pip installs beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from checkout import IN_TREE

COMMANDS = {
    # What is needed is there already; nothing is fetched.
    "pip": '-m pip "$@" --no-index --no-deps --no-build-isolation --no-compile --disable-pip-version-check',
    "pytest": '-m pytest -p no:cacheprovider "$@"',
    "linearize": '-m linearize "$@"',
}
"""What an installation would put into the environment -> what Python is called with."""


class Author:
    """Types commands in a folder."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment, self.folder = environment, folder

    def types(self, commands: str) -> str:
        """Runs shell commands one after the other; gives what they print.

        Raises:
            AssertionError: one of them failed.
        """
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
                "COLUMNS": "160",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def author(tmp_path: Path) -> Author:
    """An author in an empty folder, in a new environment with linearize in it."""
    pytest.importorskip("hatchling", reason="hatchling builds the package")
    pytest.importorskip("pip", reason="pip installs the package")
    environment, folder = tmp_path / "environment", tmp_path / "work"
    venv.create(environment, symlinks=True)
    folder.mkdir()
    there = [*IN_TREE, sysconfig.get_paths()["purelib"]]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    (packages / "linearize_is_there.pth").write_text("".join(f"{path}\n" for path in there), encoding="utf-8")
    for command, arguments in COMMANDS.items():
        script = environment / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{environment}/bin/python" {arguments}\n', encoding="utf-8")
        script.chmod(0o755)
    return Author(environment, folder)
