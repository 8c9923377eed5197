"""What only describes, prints or registers imports nothing heavy, so that help, lists and checks are there at once."""

from __future__ import annotations

import json

import pytest
from checkout import IN_TREE, ROOT, python

OWN = [path.parent.name for folder in IN_TREE[1:] for path in folder.glob("*/__init__.py")]
OPTIONS = [f"{path.parent.name}.config" for path in ROOT.glob("students/*/config.py")]
LIGHT = [
    *OWN, *OPTIONS, "linearize", "linearize.plugin.discovery", "linearize.mixing.options", "linearize.pipeline.display",
    "linearize.report.tables", "linearize.report.results", "linearize.report.page", "linearize.comparison.table",
    "linearize.comparison.page", "linearize.comparison.running", "linearize_hovle.config",
]  # fmt: skip
HEAVY = ("torch", "transformers", "matplotlib", "pytest")

SAYS_WHAT_EACH_IMPORTS = """
import importlib, json, sys
modules, heavy = map(json.loads, sys.argv[1:])
found = {}
for module in modules:
    before = set(sys.modules)
    importlib.import_module(module)
    found[module] = [name for name in heavy if name in sys.modules.keys() - before]
print(json.dumps(found))
"""


def test_light_modules_import_nothing_heavy() -> None:
    done = python("-c", SAYS_WHAT_EACH_IMPORTS, json.dumps(LIGHT), json.dumps(HEAVY))
    assert done.returncode == 0, done.stderr
    assert {module: heavy for module, heavy in json.loads(done.stdout).items() if heavy} == {}


@pytest.mark.parametrize(
    ("statements", "none_of"),
    [
        ("import linearize.cli.app", {"pydantic", "pluggy", "torch", "numpy", "matplotlib"}),
        ("import linearize.ops.backends", {"fla", "triton", "mamba_ssm"}),
        ("import linearize_glance", {"numpy"}),
        ("from linearize_glance.drawing import draw; draw('digits', 'teacher', 0, 0)", {"torch"}),
        ("from linearize.plugin.discovery import Plugins; Plugins.discover()", {"torch", "transformers", "numpy"}),
    ],
)
def test_an_import_stays_what_it_is(statements: str, none_of: set[str]) -> None:
    done = python("-c", f"import sys; {statements}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert none_of & set(done.stdout.split()) == set()
