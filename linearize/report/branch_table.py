"""What the branches of a student's mixers do, as tables, and a warning where one is ignored. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from linearize.wording import change, percent

IGNORED_SHARE = 0.01
"""A branch that adds less than this part of what sites give is ignored."""
UNCHANGED_KL = 1.02
"""A student whose KL without a branch is at most this times its KL, and that answers as much right, gains nothing."""

HEAD = ("branch", "share of output", "sites below 1 %", "site error", "KL", "right answers")
CAPTION = "whole student → without the branch; first questions of each task"


def branch_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per branch under ``HEAD``; none for a student without branches."""
    return [
        (
            name, percent(branch["share"]), _sites_below(branch["sites"]),
            change(whole["site_error"], branch["without"]["site_error"]),
            change(whole["kl"], branch["without"]["kl"]),
            f"{percent(whole['student'])} → {percent(branch['without']['student'])}",
        )
        for whole, name, branch in _each(results)
    ]  # fmt: skip


def branch_warnings(results: Mapping[str, Any]) -> list[str]:
    """A sentence for each branch that the student would hardly miss."""
    return [text for whole, name, branch in _each(results) if (text := _warning(whole, name, branch))]


def branch_table(results: Mapping[str, Any]) -> Table:
    """The terminal's table."""
    table = Table(
        title="What each branch does", caption=CAPTION, title_style="bold", caption_style="dim", box=box.SIMPLE_HEAD
    )
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in branch_rows(results):
        table.add_row(*row)
    return table


def _each(results: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    branches = results.get("branches") or {"whole": {}, "each": {}}
    for name, branch in branches["each"].items():
        yield branches["whole"], name, branch


def _sites_below(shares: Mapping[str, float]) -> str:
    return f"{sum(share < IGNORED_SHARE for share in shares.values())} of {len(shares)}"


def _warning(whole: Mapping[str, Any], name: str, branch: Mapping[str, Any]) -> str:
    without = branch["without"]
    if branch["share"] < IGNORED_SHARE:
        return f"the student ignores its {name} branch: it adds {percent(branch['share'])} of what its sites put out"
    is_as_near = whole["kl"] is not None and without["kl"] <= UNCHANGED_KL * whole["kl"]
    if is_as_near and without["student"] >= whole["student"]:
        return (
            f"the student gains nothing by its {name} branch: without it the KL to the teacher goes "
            f"{change(whole['kl'], without['kl'])} and right answers {percent(whole['student'])} → "
            f"{percent(without['student'])}"
        )
    return ""
