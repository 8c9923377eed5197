"""A conversation that is too long, cut to what fits: its first turns, or the beginning of its first answer."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

from linearize.protocols.conversation import IMAGE_MARK, Conversation, Turn


def shorten(conversation: Conversation, num_tokens: Callable[[Conversation], int], limit: int) -> Conversation | None:
    """As many of the first turns as fit; where not even one does, it with as many words of its answer as fit.

    Questions stay whole, and images with them: an answer to half a question teaches nothing.

    Args:
        num_tokens: of a whole conversation; grows with it.
        limit: the most tokens of the result.

    Returns:
        None where the first question with one word of its answer is too long.
    """
    turns = conversation.turns

    def first_turns(count: int) -> Conversation:
        return _with_turns(conversation, turns[:count])

    count = bisect_right(range(1, len(turns)), limit, key=lambda count: num_tokens(first_turns(count)))
    if count:
        return first_turns(count)
    ends = [match.end() for match in re.finditer(r"\S+", turns[0].answer)]

    def first_words(count: int) -> Conversation:
        return _with_turns(conversation, (Turn(turns[0].question, turns[0].answer[: ends[count - 1]]),))

    count = bisect_right(range(1, len(ends)), limit, key=lambda count: num_tokens(first_words(count)))
    return first_words(count) if count else None


def _with_turns(conversation: Conversation, turns: tuple[Turn, ...]) -> Conversation:
    """These turns with their images; without any mark, all images belong to the first question."""
    marks = sum(turn.question.count(IMAGE_MARK) for turn in turns)
    images = conversation.images[:marks] if conversation.num_image_marks() else conversation.images
    return replace(conversation, turns=turns, images=images)
