"""The pages of docs/ that describe recipes and plug-ins say what the code says."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from checkout import DOCS

from linearize.plugin import hookspecs
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import KINDS, Spec
from linearize.recipe.reference import recipe_reference


def test_the_recipe_reference_is_what_the_models_make_of_it() -> None:
    written = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert written == recipe_reference(Plugins.discover()), (
        "docs/recipe.md is stale: python -m linearize.recipe.reference > docs/recipe.md"
    )


def test_the_recipe_reference_has_every_component_of_the_repository() -> None:
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    for record in Plugins.discover().records:
        for spec in record.specs:
            assert spec.kind in ("format", "kernel") or f"### {spec.kind} `{spec.name}`\n" in page


def test_the_plugin_page_lists_every_hook_with_its_arguments_and_no_other() -> None:
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(linearize_\w+\(.*?\))`", page, flags=re.MULTILINE))
    hooks = {
        f"{name}({', '.join(inspect.signature(function).parameters)})"
        for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
        if name.startswith("linearize_")
    }
    assert hooks
    assert listed == hooks


def test_the_plugin_page_lists_every_spec_with_its_kind_and_own_fields_and_no_other() -> None:
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    listed = {}
    for row in re.findall(r"^\| `\w+Spec` \|.*$", page, flags=re.MULTILINE):
        name, kind, *_, more = (cell.strip() for cell in row.strip("|").split("|"))
        listed[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", more)))
    common = {field.name for field in fields(Spec)}
    assert listed == {kind.__name__: (kind.kind, {f.name for f in fields(kind)} - common) for kind in KINDS}
    assert all(f"`{name}`" in page for name in common)
