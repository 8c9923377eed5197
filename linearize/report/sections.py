"""What evaluators have to show, in every place where a person looks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linearize.evaluate.branches.section import branch_section
from linearize.protocols.evaluator import Section

BRANCHES = "branches"
"""Key of results.json under which programs find what evaluators.branches.results holds, since before evaluators."""


def evaluators_of(held: Mapping[str, Any]) -> dict[str, Any]:
    """Results and section of each evaluator, from an evaluation's summary or from the content of results.json."""
    if "evaluators" not in held and held.get(BRANCHES):
        # A run of before evaluators holds what was found, and not how it is shown.
        return {BRANCHES: {"results": held[BRANCHES], "section": asdict(branch_section(held[BRANCHES]))}}
    return dict(held.get("evaluators") or {})


def read_sections(results: Mapping[str, Any]) -> dict[str, Section]:
    """The evaluators' sections by name, from the content of results.json."""
    sections = {name: each["section"] for name, each in evaluators_of(results).items()}
    return {name: Section(**section) for name, section in sections.items() if section is not None}


def warnings_of(results: Mapping[str, Any]) -> list[str]:
    """What all evaluators warn of."""
    return [text for section in read_sections(results).values() for text in section.warnings]


def section_table(section: Section) -> RenderableType:
    """The terminal's table, or title and caption alone where there is none."""
    if not section.rows:
        return Group(Text(section.title, style="bold"), Text(section.caption or section.note, style="dim"))
    table = Table(
        title=Text(section.title, style="bold"), caption=Text(section.caption, style="dim"), box=box.SIMPLE_HEAD
    )
    for number, name in enumerate(section.head):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*map(Text, row))
    return table
