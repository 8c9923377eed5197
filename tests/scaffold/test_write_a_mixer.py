"""docs/write_a_mixer.md as its reader goes through it: from nothing to a mixer in a table, every command typed."""

from __future__ import annotations

import csv
import re
from typing import Any

import pytest
from checkout import DOCS

pytestmark = pytest.mark.slow

PAGE = (DOCS / "write_a_mixer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^`([\w/.]+)`\n\n)?^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""(path of a file or "", language, content), in the order of the page."""
COMPARE = "linearize compare small.toml --mixer mamba2,slow_memory\n"
SHORTER = {
    "stages.align-new.steps": "1",
    "stages.align-mixer.steps": "1",
    "stages.distill.steps": "1",
    "evaluate.benchmarks": '[{ type = "glance", questions = 1 }]',
    "compare.decode_tokens": "2",
    "compare.decode_rounds": "1",
}
"""What makes seconds of the page's minutes; the table's lines stay."""


def test_the_page_leads_from_nothing_to_a_mixer_in_a_table(author: Any) -> None:
    printed, typed = "", []
    for path, language, content in BLOCKS:
        if language == "sh":
            changes = "".join(f" --set '{key}={value}'" for key, value in SHORTER.items())
            printed = author.types(content.replace(COMPARE, COMPARE.rstrip() + changes))
            typed.append(content)
        elif language == "toml":
            (author.folder / path).write_text(content, encoding="utf-8")
        elif language == "text":
            assert lines_of(content) == [line for line in lines_of(printed) if line in lines_of(content)]
        elif path.startswith("linearize_"):
            # The package's folder holds a package of the same name.
            assert (author.folder / "linearize_slow_memory" / path).read_text(encoding="utf-8") == content
    assert COMPARE in typed
    with (author.folder / "runs" / "small-compare" / "report" / "compare.csv").open(encoding="utf-8") as file:
        assert [row["cell"] for row in csv.DictReader(file)] == ["teacher", "mamba2", "slow_memory"]


def lines_of(table: str) -> list[str]:
    """What the lines of a comparison's table begin with."""
    return re.findall(r"^ ([A-Za-z][\w ,/]*?) {2,}", table, re.MULTILINE)
