"""Records that a teacher turns out not to take when a batch is made of them; they give way, as broken ones do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from linearize.data.samples import SampleReader
from linearize.errors import DataError
from linearize.protocols import Conversation, DataSource, FitsTeacher, Sample

T = TypeVar("T")


class UnfitRecords:
    """What of a source's records one teacher has refused.

    ``num_tokens`` of an adapter need not look at all that ``batch`` looks at, such as what a processor makes of an
    image's pixels. What ``batch`` alone refuses is left out from then on, with its reason in the source's account.

    Args:
        source: where the samples come from; one that leaves nothing out has to have good ones alone.
    """

    def __init__(self, reader: SampleReader, source: DataSource) -> None:
        self._reader = reader
        self._refused: dict[Hashable, dict[str, str]] = {}  # key -> pixels -> reason
        self._fits = isinstance(source, FitsTeacher)
        if isinstance(source, FitsTeacher):
            source.fit_to(self._num_tokens)

    def give_way(self, draw: Callable[[], Sequence[Sample]], make: Callable[[Sequence[Sample]], T]) -> T:
        """What ``make`` makes of the samples that ``draw`` gives.

        Args:
            draw: is asked again once the source leaves out what stood in the way.

        Raises:
            DataError: samples are refused together that are taken one by one, or the source goes on giving them; or
                too many of its records are bad.
        """
        while True:
            samples = draw()
            try:
                return make(samples)
            except DataError:
                if not self._fits or not self._refuse_unfit(samples):
                    raise

    def _refuse_unfit(self, samples: Sequence[Sample]) -> bool:
        """Notes which conversations are refused by themselves; whether there are new ones."""
        found_new = False
        for conversation in (one for one in samples if isinstance(one, Conversation)):
            try:
                self._reader.batch([conversation])
            except DataError as error:
                reasons = self._refused.setdefault(_key(conversation), {})
                pixels = _pixels(conversation)
                found_new |= pixels not in reasons
                reasons.setdefault(pixels, str(error))
        return found_new

    def _num_tokens(self, conversation: Conversation) -> int:
        reasons = self._refused.get(_key(conversation))
        if reasons is not None and (reason := reasons.get(_pixels(conversation))) is not None:
            raise DataError(reason)
        return self._reader.num_tokens(conversation)


def _key(conversation: Conversation) -> Hashable:
    """What is cheap to compare, so that pixels are read only where it is that of a refused one."""
    return conversation.id, conversation.turns, tuple(image.size for image in conversation.images)


def _pixels(conversation: Conversation) -> str:
    """Tells apart conversations of one key: whether one is refused must not depend on which were drawn before."""
    digest = hashlib.sha256()
    for image in conversation.images:
        digest.update(image.mode.encode() + image.tobytes())
    return digest.hexdigest()
