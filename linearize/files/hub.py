"""The Hugging Face hub where it may be out of reach: it is asked once, and nobody waits for half a minute of retries.

Where it does not answer, its libraries are put offline for a moment, so that they look into their cache alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REMEMBERED_S = 60.0
"""For how long the hub is not asked again."""

OFFLINE = "HF_HUB_OFFLINE is set. Check the name, or unset that variable"
ADVICE = (
    "Check the name and the network; HF_ENDPOINT names a mirror of the hub, HF_HOME the folder with the cache, and "
    "HF_HUB_OFFLINE=1 reads the cache without asking"
)


@contextmanager
def asked_once(name: str) -> Iterator[str]:
    """Reads ``name``, a folder or a hub id, without waiting for a hub that does not answer.

    Gives:
        Why the hub cannot be asked; "" where it can, and for a folder.
    """
    if Path(name).exists():
        yield ""
        return
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    obstacle = OFFLINE if was_offline else _obstacle(time.monotonic() // REMEMBERED_S)
    constants.HF_HUB_OFFLINE = was_offline or bool(obstacle)
    try:
        yield obstacle
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def failure(error: Exception, obstacle: str) -> str:
    """What to tell of a failed read: that the hub was out of reach where that is why, else the error itself."""
    # What is missing and what is not reached is an OSError in all of the hub's libraries.
    if not obstacle or not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return f"it is not in the hub's cache on this machine, and the hub cannot be asked: {obstacle}"


@functools.lru_cache(maxsize=1)
def _obstacle(_minute: float) -> str:
    """Why the hub does not answer; whatever it answers means that it does."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of whichever HTTP library this release of the hub's uses
        return f"{constants.ENDPOINT} does not answer ({error}). {ADVICE}"
    return ""
