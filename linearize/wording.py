"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

ABSENT = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """0.961 -> "96.1 %"."""
    return ABSENT if share is None else f"{100 * share:.{digits}f} %"


def percent_interval(interval: Sequence[float] | None, digits: int = 1) -> str:
    """(0.95, 0.972) -> "95.0–97.2"; the unit stands in the heading or beside."""
    if interval is None:
        return ABSENT
    low, high = interval
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def counted(number: int, noun: str) -> str:
    """ "1 cell", "2 cells"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short_count(number: float | None) -> str:
    """1234567 -> "1.23 M"; three digits and a unit."""
    if number is None:
        return ABSENT
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{_three_digits(number / size)} {unit}"
    return f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """252.3 -> "4 min 12 s"."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def quantity(value: float | None) -> str:
    """A loss or an error with three significant digits: 0.0493, 12.1, 1.5e-06."""
    if value is None:
        return ABSENT
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return _three_digits(value)


def change(first: float | None, last: float | None) -> str:
    """ "1.02 → 0.55"; absent where neither is known."""
    return ABSENT if first is None and last is None else f"{quantity(first)} → {quantity(last)}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = 0
    while decimals < 6 and round(abs(value), decimals) * 10**decimals < 100:
        decimals += 1
    return f"{value:.{decimals}f}"
