"""Every text that glance uses: few words, one space between any two, so that a tokenizer needs one piece for each.

A question mark stands apart for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from linearize.protocols.conversation import IMAGE_MARK
from linearize_glance.canvas import COLOR_NAMES
from linearize_glance.sprites import GLYPHS, SHAPES

DIGITS = tuple("0123456789")
KEYS = tuple(glyph for glyph in GLYPHS if glyph not in DIGITS) + COLOR_NAMES + SHAPES
"""What recall binds digits to: 24 letters, and colours and shapes besides, so that 32 different keys can be had."""

READ_TEXT = "read the text"
READ_DIGITS = "read the digits"
COUNT_ALL = "how many objects ?"


def color_of(shape: str) -> str:
    """Asks for the colour of the only object of a shape."""
    return f"what colour is the {shape} ?"


def shape_of(color: str) -> str:
    """Asks for the shape of the only object of a colour."""
    return f"what shape is the {color} one ?"


def count_of(color: str) -> str:
    """Asks for the number of objects of a colour."""
    return f"how many {color} objects ?"


def side_of(first: str, second: str) -> str:
    """Asks for ``left`` or ``right``."""
    return f"is the {first} left or right of the {second} ?"


def height_of(first: str, second: str) -> str:
    """Asks for ``above`` or ``below``."""
    return f"is the {first} above or below the {second} ?"


def value_of(color: str) -> str:
    """Asks for the height of a bar."""
    return f"how high is the {color} bar ?"


def bound_to(key: str) -> str:
    """Asks for the digit behind a key."""
    return f"what is {key} ?"


def color_in(number: int) -> str:
    """Asks for the colour of the object in one image of an album."""
    return f"what colour is image {number} ?"


def shape_in(number: int) -> str:
    """Asks for the shape of the object in one image of an album."""
    return f"what shape is image {number} ?"


def image_with(feature: str) -> str:
    """Asks for the number of the image that shows a colour or shape."""
    return f"which image is {feature} ?"


def numbered_marks(count: int) -> str:
    """Image marks, each behind its number on a line of its own."""
    return "".join(f"{number} {IMAGE_MARK}\n" for number in range(1, count + 1))


def vocabulary_corpus() -> Iterator[str]:
    """Lines with every word and character of every task, to train a tokenizer on; without image marks."""
    yield from (COUNT_ALL, "left", "right", "above", "below")
    yield from (" ".join(GLYPHS), " ".join(reversed(GLYPHS)))
    for color in COLOR_NAMES:
        yield from (color, shape_of(color), count_of(color), value_of(color), image_with(color), bound_to(color))
        yield from (asks(f"{color} one", f"{other} one") for other in COLOR_NAMES if other != color
                    for asks in (side_of, height_of))  # fmt: skip
    for shape in SHAPES:
        yield from (shape, color_of(shape), image_with(shape), bound_to(shape))
        yield from (asks(shape, other) for other in SHAPES if other != shape for asks in (side_of, height_of))
    for digit in DIGITS:
        yield from (READ_DIGITS, digit, color_in(int(digit)), shape_in(int(digit)))
        yield " ".join(f"{key} {digit}" for key in KEYS)
    for glyph in GLYPHS:
        yield from (READ_TEXT, glyph, bound_to(glyph))


def words() -> tuple[str, ...]:
    """Every different word and character of the corpus, sorted."""
    return tuple(sorted({word for line in vocabulary_corpus() for word in line.split()}))
