"""Documents as rows of tokens, numbered as they come; tokens are made only as far as a row that was asked for."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence

from linearize.data.bad_records import BadRecordError, BadRecords
from linearize.data.text.config import TextConfig
from linearize.data.text.documents import Corpus, Document
from linearize.errors import DataError

Tokenize = Callable[[Sequence[str]], list[list[int]]]

BATCH_CHARACTERS = 1 << 20
"""Text that a tokenizer gets at a time; it may use several threads."""
CHECKED_EVERY = 1000
"""Documents after which the share of bad ones is looked at, when their number is not known before the end."""
TOKEN = "i"
"""32 bits, whatever the vocabulary."""


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is kept from training: a function of its text alone, so that copies of it are too."""
    first = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]
    return int.from_bytes(first, "big") < share * 2**64


class RowMaker:
    """One pass through a corpus.

    Attributes:
        first: the first row that is still held.
        num_documents, num_tokens: of the part that is read, so far.
    """

    def __init__(self, corpus: Corpus, config: TextConfig, tokenize: Tokenize, bad: BadRecords) -> None:
        self.config, self._tokenize, self._bad = config, tokenize, bad
        self._batches = self._tokenized(corpus)
        self._tokens = array(TOKEN)
        self._bounds = array("q", [0])  # of the rows that are held, where each holds one document
        self._ended = False
        self.first = self.num_documents = self.num_tokens = 0

    def row(self, number: int, *, keep: int | None = None) -> array[int] | None:
        """The tokens of a row, from ``first`` on; None beyond the last one.

        Args:
            keep: rows before this one that are held, at least; None: all of them.
        """
        while number >= self.num_rows and self._grow():
            if keep is not None and min(number, self.num_rows) - self.first > 2 * keep:
                self._forget(min(number, self.num_rows) - keep)
        if number >= self.num_rows:
            return None
        begin, end = self._place(number)
        return self._tokens[begin:end]

    @property
    def num_rows(self) -> int:
        """Rows that were made so far, whole ones where they are joined."""
        if self.config.rows == "documents":
            return self.first + len(self._bounds) - 1
        whole = self.first + len(self._tokens) // self.config.tokens
        # A corpus of less than one row is one short row.
        return whole or int(self._ended and len(self._tokens) > 1)

    def all(self) -> int:
        """Reads what is left; gives the number of rows."""
        while self._grow():
            pass
        return self.num_rows

    def _forget(self, number: int) -> None:
        """Drops the rows before ``number``."""
        end = self._place(number)[0]
        del self._tokens[:end]
        if self.config.rows == "documents":
            self._bounds = array("q", [bound - end for bound in self._bounds[number - self.first :]])
        self.first = number

    def _place(self, number: int) -> tuple[int, int]:
        place = number - self.first
        if self.config.rows == "documents":
            return self._bounds[place], self._bounds[place + 1]
        return place * self.config.tokens, (place + 1) * self.config.tokens

    def _grow(self) -> bool:
        """Adds the next batch of documents; False at the end."""
        batch = next(self._batches, None)
        if batch is None:
            self._ended = True
            return False
        for ids in batch:
            self.num_documents += 1
            self.num_tokens += len(ids)
            if self.config.rows == "joined":
                self._tokens.extend(ids)
                continue
            for begin in range(0, len(ids) - 1, self.config.tokens):  # a rest of one token predicts nothing
                self._tokens.extend(ids[begin : begin + self.config.tokens])
                self._bounds.append(len(self._tokens))
        return True

    def _tokenized(self, corpus: Corpus) -> Iterator[list[list[int]]]:
        documents: list[Document] = []
        characters = 0
        for document in self._wanted(corpus):
            documents.append(document)
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS:
                yield self._ids(documents)
                documents, characters = [], 0
        if documents:
            yield self._ids(documents)
        self._bad.check_limit()

    def _wanted(self, corpus: Corpus) -> Iterator[Document]:
        """The good documents of the recipe's part."""
        for document in corpus:
            self._bad.num_records += 1
            if document.fault is not None:
                self._note(document, document.fault)
            elif is_held_out(document.text, self.config.held_out) == (self.config.part == "held_out"):
                yield document
            if self._bad.num_records % CHECKED_EVERY == 0:
                self._bad.check_limit()

    def _ids(self, documents: Sequence[Document]) -> list[list[int]]:
        try:
            return self._tokenize([document.text for document in documents])
        except DataError:
            found = []
            for document in documents:
                try:
                    found += self._tokenize([document.text])
                except DataError as error:
                    self._note(document, BadRecordError("not for this teacher", str(error)))
            return found

    def _note(self, document: Document, fault: BadRecordError) -> None:
        self._bad.add(document.number, fault, source=document.source, unit=document.unit)
        if isinstance(self.config.max_bad, int):  # a share is known at the end alone
            self._bad.check_limit()
