"""docs/teachers.md is what the table of tested families makes of it."""

from __future__ import annotations

import pytest
from checkout import DOCS
from linearize_transformers.matrix import support_page
from linearize_transformers.support import FAMILIES

PAGE = DOCS / "teachers.md"


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_teachers_is_current() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == support_page(), (
        "docs/teachers.md is stale: python -m linearize_transformers.matrix > docs/teachers.md"
    )
    assert all(f"| `{family.model_type}` |" in written for family in FAMILIES)


def test_the_readme_counts_the_families() -> None:
    assert f"{len(FAMILIES)} families of them tested" in (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
