"""Samples of either kind to batches: conversations by the teacher's own way, rows of text by theirs."""

from __future__ import annotations

from collections.abc import Sequence

from linearize.data.packing import fill_rows
from linearize.data.stream import micro_batches
from linearize.data.widths import widened
from linearize.errors import DataError
from linearize.protocols import (
    Batch,
    Conversation,
    PacksSamples,
    ReadsText,
    Sample,
    TeacherAdapter,
    TextRow,
    sample_tokens,
)


class SampleReader:
    """What one teacher makes of samples."""

    def __init__(self, adapter: TeacherAdapter) -> None:
        self.adapter = adapter

    def num_tokens(self, sample: Sample) -> int:
        """Tokens that a batch has of the sample."""
        return sample_tokens(self.adapter, sample)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Samples of one kind, right-padded.

        Raises:
            DataError: they are of both kinds, or text for a teacher that takes none; or the teacher refuses one.
        """
        conversations = [sample for sample in samples if isinstance(sample, Conversation)]
        rows = [sample for sample in samples if isinstance(sample, TextRow)]
        if not rows:
            return self.adapter.batch(conversations)
        if conversations:
            raise DataError(f"a batch of {len(conversations)} conversations and {len(rows)} rows of text was asked for")
        if not isinstance(self.adapter, ReadsText):
            raise DataError(f"{type(self.adapter).__name__} takes no running text (linearize.protocols.ReadsText)")
        return self.adapter.text_batch([row.ids for row in rows])

    def batches(
        self,
        samples: Sequence[Sample],
        *,
        max_padding: float,
        max_tokens: int,
        multiple: int | None = None,
        pack: int | None = None,
    ) -> list[Batch]:
        """One optimizer step's samples in batches of one kind and similar length.

        Args:
            multiple: rows are padded to a multiple of it, in tokens; None: to the longest of a batch.
            pack: samples share rows of this many tokens, each a batch; the other limits are then not looked at.
        """
        if pack is not None:
            return self.packed(samples, pack)

        def width(sample: Sample) -> int:
            return -(-self.num_tokens(sample) // (multiple or 1)) * (multiple or 1)

        kinds = ([one for one in samples if isinstance(one, TextRow) == is_text] for is_text in (False, True))
        groups = [
            group for of_kind in kinds
            for group in micro_batches(of_kind, width, max_padding=max_padding, max_tokens=max_tokens)
        ]  # fmt: skip
        batches = [self.batch(group) for group in groups]
        return batches if multiple is None else [widened(batch, multiple) for batch in batches]

    def packed(self, samples: Sequence[Sample], width: int) -> list[Batch]:
        """The samples in rows of ``width`` tokens, each a batch; one that is longer as it is.

        Raises:
            DataError: the teacher's adapter does not pack.
        """
        adapter = self.adapter
        if not isinstance(adapter, PacksSamples):
            raise DataError(f"{type(adapter).__name__} packs no samples (linearize.protocols.PacksSamples)")
        lengths = [self.num_tokens(sample) for sample in samples]
        batches = []
        for row in fill_rows(lengths, width):
            alone = [self.batch([samples[number]]) for number in row]
            batches.append(alone[0] if lengths[row[0]] > width else adapter.pack(alone, width))
        return batches
