"""What people are shown of branches: a table, and a warning where one is ignored. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linearize.protocols.evaluator import Section
from linearize.wording import change, percent

IGNORED_SHARE = 0.01
"""A branch that adds less than this part of what sites give is ignored."""
UNCHANGED_KL = 1.02
"""A student whose KL without a branch is at most this times its KL, and that answers as much right, gains nothing."""

HEAD = ("branch", "share of output", "sites below 1 %", "site error", "KL", "right answers")


def branch_section(results: Mapping[str, Any]) -> Section:
    """The results of the evaluator "branches" for people."""
    warnings = [_warning(results["whole"], name, branch) for name, branch in results["each"].items()]
    return Section(
        title="What each branch does",
        head=HEAD,
        rows=_rows(results),
        caption="whole student → without the branch; first questions of each task",
        note="Each site of this student adds up several branches. Share: the length of what a branch adds to a site's "
        "output on the teacher's own inputs, as a part of all branches', mean over valid tokens and sites. Behind it "
        f"the whole student → the same without the branch, on {results['questions']} questions: the sites' squared "
        "error relative to the variance of the teacher's output, the KL to the teacher per answer token, and answers "
        "that are right. A branch that nobody would miss is not what the student runs on.",
        warnings=[text for text in warnings if text],
    )


def _rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    whole = results["whole"]
    return [
        (
            name, percent(branch["share"]), _sites_below(branch["sites"]),
            change(whole["site_error"], branch["without"]["site_error"]),
            change(whole["kl"], branch["without"]["kl"]),
            f"{percent(whole['student'])} → {percent(branch['without']['student'])}",
        )
        for name, branch in results["each"].items()
    ]  # fmt: skip


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
