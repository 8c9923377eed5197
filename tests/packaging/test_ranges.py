"""The ranges of pyproject.toml are what CI tests: constraints-oldest.txt at one end, constraints.txt at the other."""

from __future__ import annotations

import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from checkout import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["dependencies"])}
TORCH_IS_NOT_LAID_OVER_ANOTHER = {"torch"}


def pins(file: str) -> dict[str, Version]:
    """The releases that a constraints file names."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    named = dict(line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(release) for name, release in named.items()}


def test_the_oldest_set_is_the_lower_bounds_of_all_dependencies_but_torch() -> None:
    lower = {
        name: Version(part.version)
        for name, one in REQUIREMENTS.items()
        for part in one.specifier
        if part.operator == ">="
    }
    assert lower.keys() == REQUIREMENTS.keys()
    oldest = pins("constraints-oldest.txt")
    assert oldest == {name: lower[name] for name in lower.keys() - TORCH_IS_NOT_LAID_OVER_ANOTHER}


def test_the_newest_set_has_a_release_of_every_dependency_and_it_is_admitted() -> None:
    newest = pins("constraints.txt")
    for name, one in REQUIREMENTS.items():
        assert one.specifier.contains(newest[name]), name


def test_transformers_is_admitted_up_to_the_minor_release_that_was_tested() -> None:
    """It renames things at minor releases."""
    tested = pins("constraints.txt")["transformers"]
    upper = {part.operator: part.version for part in REQUIREMENTS["transformers"].specifier}["<"]
    assert upper == f"{tested.major}.{tested.minor + 1}"


def test_the_environment_of_the_oldest_releases_has_these() -> None:
    if not (Path(sysconfig.get_path("purelib")) / "oldest.pth").is_file():
        pytest.skip("not that environment: `make test-oldest` makes it")
    oldest = pins("constraints-oldest.txt")
    assert {name: Version(version(name)) for name in oldest} == oldest
