"""Sites by their numbers, as a list or as ranges in a text: [0, 1, 2, 5] and "0-2, 5" are the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def parse_site_ranges(value: Any) -> Any:
    """The numbers in a text such as "0-2, 5"; what is no text stays as it is.

    Raises:
        ValueError: the text is no such list, or one of its ranges ends before it begins.
    """
    if not isinstance(value, str):
        return value
    numbers: list[int] = []
    for part in value.split(","):
        found = _RANGE.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ValueError(f"expected sites such as '0-2, 5', each range ascending; '{part.strip()}' is none")
        numbers.extend(range(first, last + 1))
    return numbers


def site_ranges(indices: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "0-2, 5"."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


SiteIndices = Annotated[
    tuple[int, ...], BeforeValidator(parse_site_ranges, json_schema_input_type=tuple[int, ...] | str)
]
"""A field that takes either form."""
