"""What a wheel holds, and that no plug-in folder is forgotten in pyproject.toml."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT

from linearize.plugin.discovery import ENTRY_POINT_GROUP, IN_TREE_FOLDERS

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = sorted(
    package.relative_to(ROOT).as_posix()
    for folder in IN_TREE_FOLDERS
    for package in (ROOT / folder).glob("linearize_*")
    if (package / "__init__.py").is_file()
)
NAMES = {Path(package).name for package in PLUGINS}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of the checkout, built without network."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_plugin_folder_is_a_package_of_the_wheel() -> None:
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(["linearize", *PLUGINS])


def test_every_plugin_folder_has_an_entry_point_of_its_short_name() -> None:
    points = PYPROJECT["project"]["entry-points"][ENTRY_POINT_GROUP]
    assert points == {name.removeprefix("linearize_"): name for name in NAMES}


def test_type_checkers_are_told_of_every_package() -> None:
    mypy = PYPROJECT["tool"]["mypy"]
    assert set(mypy["packages"]) == {"linearize", *NAMES}
    assert set(mypy["mypy_path"]) == set(IN_TREE_FOLDERS)
    assert {f"{name}.*" for name in ("linearize", *NAMES)} in [set(table["module"]) for table in mypy["overrides"]]


@pytest.mark.parametrize("package", ["linearize", *PLUGINS])
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_a_wheel_puts_the_packages_and_nothing_else_into_site_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    metadata = {top for top in tops if top.endswith(".dist-info")}
    assert tops - metadata == {"linearize", *NAMES}
    assert len(metadata) == 1


def test_a_wheel_holds_every_file_that_its_packages_have_in_git(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(["git", "ls-files", "linearize", *PLUGINS], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    there = [name for name in tracked.stdout.splitlines() if (ROOT / name).exists()]
    inside = {
        name.removeprefix(f"{Path(p).parent.as_posix()}/") for name in there for p in PLUGINS if name.startswith(p)
    }
    inside |= {name for name in there if name.startswith("linearize/")}
    assert inside - set(wheel.namelist()) == set()


def test_a_wheel_declares_the_command_and_the_plugins(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {"linearize": "linearize.cli:main"}
    assert set(points[ENTRY_POINT_GROUP].values()) == NAMES


def test_kernel_packages_are_extras_and_never_required() -> None:
    required = " ".join(PYPROJECT["project"]["dependencies"])
    for package in ("flash-linear-attention", "triton", "mamba-ssm", "causal-conv1d"):
        assert package not in required
        assert any(package in extra for extra in PYPROJECT["project"]["optional-dependencies"]["cuda"])
