"""Random streams by name: every split draws from a stream of its own.

A stream's key is the SHA-256 of everything that names it, the split included. Two splits (or seeds, tasks, indices)
could share a stream only if SHA-256 collided, whatever numbers are chosen.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import numpy as np

Split = Literal["teacher", "distil", "validation", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)
TRAINING_SPLITS: frozenset[Split] = frozenset({"teacher", "distil"})

_VERSION = "glance 1"
"""Part of every key. Change it when the pictures change, so that nobody takes old questions for new ones."""


def stream(split: Split, seed: int, *names: str | int | None) -> np.random.Generator:
    """The generator that belongs to one split, seed and name; equal arguments give equal draws.

    Raises:
        ValueError: the split does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} asked for; there are {', '.join(SPLITS)}")
    # str() writes a numpy integer like a plain one, where repr() would not; no name holds a slash.
    key = "/".join(map(str, (_VERSION, split, seed, *names)))
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")))


def pick(rng: np.random.Generator, size: int, count: int) -> list[int]:
    """``count`` different numbers below ``size``, in random order."""
    return [int(number) for number in rng.permutation(size)[:count].tolist()]


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """A number from ``low`` to ``high``, both included."""
    return int(rng.integers(low, high + 1))
