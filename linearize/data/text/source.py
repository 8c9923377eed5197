"""Running text as a data source."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from linearize.data.bad_records import BadRecords
from linearize.data.text.config import TextConfig
from linearize.data.text.documents import Corpus
from linearize.data.text.rows import RowMaker, Tokenize
from linearize.errors import DataError
from linearize.protocols import BadRecord, ReadsText, TextRow
from linearize.wording import counted, short_count

KEPT_ROWS = 1024
"""Rows of a stream that are held behind the latest one; whoever asks for earlier ones has it read from the first."""


class TextSource:
    """Rows of tokens by number.

    Opening it looks for the files. Documents are read and given to the teacher's tokenizer as far as a row that is
    asked for, or all of them when ``size`` is. Their tokens are held in memory, 4 bytes each; a stream is not.

    Attributes:
        shuffle: what the recipe asks for; the order is the sample stream's affair.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config, self.shuffle = config, config.shuffle
        self._corpus = Corpus(config)
        self._bad = BadRecords(self._corpus.name, config.max_bad, "document")
        self._tokenize: Tokenize | None = None
        self._maker: RowMaker | None = None
        self._first = 0  # number of the first row of a stream's pass
        self._lock = threading.Lock()  # a prefetching thread and the run may ask at the same time

    def read_as(self, adapter: ReadsText) -> None:
        """Takes the teacher's tokenizer."""
        self._tokenize, self._maker, self._first = adapter.text_ids, None, 0

    @property
    def size(self) -> int | None:
        """How many rows there are; None of a stream, and before a teacher is known.

        Raises:
            DataError: the corpus cannot be read, holds no row, or has too many bad documents.
        """
        if self._tokenize is None or self.config.streaming:
            return None
        with self._lock:
            num_rows = self._pass().all()
        if not num_rows:
            raise self._nothing()
        return num_rows

    def __getitem__(self, index: int) -> TextRow:
        """The row at ``index``.

        Raises:
            IndexError: there is no such row.
            DataError: as for ``size``; or no teacher was named.
        """
        with self._lock:
            ids: Sequence[int] | None = None
            if index >= 0:
                ids = self._streamed(index) if self.config.streaming else self._pass().row(index)
        if ids is None:
            if not self.config.streaming and index >= 0 and not self._pass().num_rows:
                raise self._nothing()
            raise IndexError(f"row {index} asked for; {self._corpus.name} has {self.size}")
        return TextRow(ids, f"row {index}")

    def bad_records(self) -> list[BadRecord]:
        """The documents left out so far, in the order in which they were found."""
        return self._bad.records()

    def contents(self) -> str:
        """Documents, tokens and rows of the part that is read; reads all of it where it is no stream."""
        if self.config.streaming:
            return f"a stream of rows of {self.config.tokens:,} tokens"
        size, maker = self.size, self._pass()
        return (
            f"{counted(maker.num_documents, 'document')}, {short_count(maker.num_tokens)} tokens in "
            f"{counted(size or 0, 'row')} of {'at most ' * (self.config.rows == 'documents')}{self.config.tokens:,}"
        )

    def _pass(self) -> RowMaker:
        """The pass that is under way."""
        if self._maker is None:
            if self._tokenize is None:
                raise DataError("rows of text are in the tokens of a teacher, and none was named yet (read_as)")
            self._maker = RowMaker(self._corpus, self.config, self._tokenize, self._bad)
        return self._maker

    def _streamed(self, index: int) -> Sequence[int] | None:
        """The row of that number, counted through as many passes as it takes."""
        if index < self._first + self._pass().first:
            self._maker, self._first = None, 0
        while (ids := self._pass().row(index - self._first, keep=KEPT_ROWS)) is None:
            if not self._pass().num_rows:
                raise self._nothing()
            self._first += self._pass().num_rows
            self._maker = None
        return ids

    def _nothing(self) -> DataError:
        share, part = self.config.held_out, self.config.part
        wanted = f" (part = '{part}', held_out = {share})" if share else ""
        return DataError(
            f"{self._corpus.name} holds no row of text{wanted}: {self._bad.num_records} documents were read, "
            f"{len(self._bad)} of them bad. Name files with text in data.path",
            option="path",
        )
