"""Options that take several numbers, with spaces or commas between them: ``--lengths 2048 32768`` or ``2048,32768``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from typer import Context
from typer.core import TyperCommand

NUMBERS = re.compile(r"[\d_,]+")
OPTIONS = ("--lengths",)


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """The command line with the numbers behind such an option as one argument."""
    joined: list[str] = []
    is_open = False
    for argument in arguments:
        if is_open and NUMBERS.fullmatch(argument):
            starts = joined[-1] in OPTIONS
            joined[-1:] = [joined[-1], argument] if starts else [f"{joined[-1]},{argument}"]
            continue
        is_open = argument in OPTIONS
        joined.append(argument)
    return joined


def read_numbers(text: str) -> list[int]:
    """The numbers in "2048,32768".

    Raises:
        ValueError: something else is in it.
    """
    return [int(part) for part in text.split(",") if part.strip()]


class NumbersInARow(TyperCommand):
    """A command with such options."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """As ever, with numbers in a row joined."""
        return super().parse_args(ctx, join_numbers(args))
