"""Running text as training data: rows of a teacher's tokens, who makes them and who is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from linearize.protocols.conversation import Conversation

if TYPE_CHECKING:
    from linearize.protocols.batch import Batch
    from linearize.protocols.teacher import TeacherAdapter


@dataclass(frozen=True, slots=True)
class TextRow:
    """Tokens of running text; each of them is to be predicted.

    Attributes:
        ids: at least one.
        id: names the row in messages.
    """

    ids: Sequence[int]
    id: str = ""


Sample: TypeAlias = Conversation | TextRow
"""What a data source yields."""


@runtime_checkable
class ReadsText(Protocol):
    """What a teacher adapter offers besides, when it takes running text."""

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of whole documents: what the tokenizer puts in front of a text, the text, what ends one.

        What spells a special token is text like any other.

        Raises:
            DataError: a text holds something that cannot be read as text.
        """
        ...

    def text_batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of tokens, right-padded; the loss covers every token that is no pad."""
        ...


@runtime_checkable
class HoldsText(Protocol):
    """What a data source offers besides, when it yields rows of running text in the tokens of a teacher."""

    def read_as(self, adapter: ReadsText) -> None:
        """Takes the tokenizer; called once, before any sample is asked for. ``size`` is None until then."""
        ...


@runtime_checkable
class TellsContents(Protocol):
    """What a data source offers besides, when there is more to tell of it than its size."""

    def contents(self) -> str:
        """What it holds, such as "1,204 documents, 8.1 M tokens"; told with the plan."""
        ...


def sample_tokens(adapter: TeacherAdapter, sample: Sample) -> int:
    """How many tokens a batch has of a sample."""
    return len(sample.ids) if isinstance(sample, TextRow) else adapter.num_tokens(sample)
