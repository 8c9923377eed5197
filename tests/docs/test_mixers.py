"""The pages about mixers name every mixer, show the code that is written, and list the checks that are made."""

from __future__ import annotations

import re
import tomllib

from checkout import DOCS, EXAMPLES

from linearize import api
from linearize.mixing.options import LinearMixerOptions
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.plugin.tables import merge
from linearize.recipe.reference import OWN_ORIGINS
from linearize.recipe.toml import read_tables
from linearize.scaffold import mixer_files
from linearize.testing import MixerConformance

MIXERS = (DOCS / "mixers.md").read_text(encoding="utf-8")
WRITE = (DOCS / "write_a_mixer.md").read_text(encoding="utf-8")
# What `linearize new mixer` writes passes its own tests: tests/scaffold.
SHOWN = re.findall(r"^`([\w/.]+\.py)`\n\n```python\n(.*?)```", WRITE, re.MULTILINE | re.DOTALL)


def test_the_code_on_the_page_is_what_new_mixer_writes() -> None:
    files = mixer_files("slow_memory")
    assert {path for path, _ in SHOWN} == {path for path, text in files.items() if path.endswith(".py") and text}
    for path, code in SHOWN:
        assert code == files[path], path


def test_every_mixer_of_this_repository_has_a_row_with_its_paper() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\((https://[^)]+)\) \|$", MIXERS, re.MULTILINE))
    records = [record for record in Plugins.discover().records if record.origin in OWN_ORIGINS]
    specs = [spec for record in records for spec in record.specs if isinstance(spec, MixerSpec)]
    assert rows == {spec.name: spec.source for spec in specs}


def test_every_shared_option_is_explained() -> None:
    table = MIXERS.partition("| option |")[2].partition("\n\n")[0]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(LinearMixerOptions.model_fields)


def test_every_check_of_the_kit_is_listed_in_its_order() -> None:
    listed = re.findall(r"^\| ([\w ]+) \| (?!what it would catch|---)", WRITE, re.MULTILINE)
    checks = [name for name in vars(MixerConformance) if name.startswith("test_")]
    assert [f"test_{words.lower().replace(' ', '_')}" for words in listed] == checks


def test_the_recipe_with_different_mixers_at_different_sites_is_right() -> None:
    section = MIXERS.partition("## Different mixers at different sites")[2].partition("\n## ")[0]
    [block] = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    base = read_tables(EXAMPLES / "mmmamba_hovle.toml")
    plan = api.check(merge(base, tomllib.loads(block))).plan
    assert [group.sites for group in plan.mixers] == [(0, 1), tuple(range(2, 7)), (7,)]
