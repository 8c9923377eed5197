"""What a bench measures and how: what was asked for, with what suits the device for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from linearize.errors import RunError, did_you_mean
from linearize.inference.engines import ENGINES
from linearize.inference.measure import FEWEST_NEW_TOKENS, Way

NO_LIMIT = 2**16
"""Rows."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is measured, and how; None: as suits the device.

    Attributes:
        engines: names of ``linearize.inference.engines.ENGINES``.
        lengths: tokens of the prompts.
        new_tokens: tokens of an answer.
        max_rows: of the largest batch that is tried; 0: batches are not measured.
        skip: "MODEL", "MODEL:ENGINE" or "MODEL:ENGINE:LENGTH": cells that are left out.
        compiles: whether a CPU compiles the static step.
        prefill_chunk: tokens that models with linear sites read at a time; 0: all.
        minutes: after so many, no further cells and rounds are begun.
        dtype: "float32" or "bfloat16".
        device: "cpu" or "cuda".
    """

    engines: Sequence[str] = tuple(ENGINES)
    lengths: Sequence[int] | None = None
    new_tokens: int | None = None
    rounds: int | None = None
    max_rows: int | None = None
    skip: Sequence[str] = ()
    compiles: bool = False
    prefill_chunk: int = 0
    minutes: float | None = None
    dtype: str | None = None
    device: str | None = None

    def resolved(self) -> BenchOptions:
        """With every default of the device.

        Raises:
            RunError: an engine, a device or a number cannot be.
        """
        has_gpu = torch.cuda.is_available()
        device = self.device or ("cuda" if has_gpu else "cpu")
        on_gpu = device == "cuda"
        options = replace(
            self,
            engines=tuple(dict.fromkeys(self.engines)),
            lengths=tuple(sorted(set(self.lengths or ((2048, 8192, 32768) if on_gpu else (128, 512, 2048))))),
            new_tokens=self.new_tokens or (64 if on_gpu else 16),
            rounds=self.rounds or 3,
            max_rows=(NO_LIMIT if on_gpu else 8) if self.max_rows is None else self.max_rows,
            dtype=self.dtype or ("bfloat16" if on_gpu else "float32"),
            device=device,
        )
        unknown = [name for name in options.engines if name not in ENGINES]
        if unknown or not options.engines:
            near = did_you_mean(unknown[0], ENGINES) if unknown else ""
            raise RunError(f"engines: expected some of {', '.join(ENGINES)}; got {', '.join(unknown) or 'none'}.{near}")
        if device not in ("cpu", "cuda") or (on_gpu and not has_gpu):
            raise RunError(
                f"device: expected cpu{' or cuda' if has_gpu else ', since torch finds no GPU'}; got {device}"
            )
        if options.dtype not in ("float32", "bfloat16"):
            raise RunError(f"dtype: expected float32 or bfloat16; got {options.dtype}")
        assert options.lengths is not None
        assert options.new_tokens is not None
        if options.lengths[0] < 1:
            raise RunError(f"lengths: expected numbers of tokens from 1 on; got {options.lengths[0]}")
        if options.new_tokens < FEWEST_NEW_TOKENS:
            raise RunError(
                f"new tokens: expected {FEWEST_NEW_TOKENS} or more, since the first ones are not timed; got "
                f"{options.new_tokens}"
            )
        return options

    def way(self, engine: str) -> Way:
        """How a cell of an engine is measured."""
        assert self.new_tokens is not None
        return Way(engine, self.new_tokens, self.compiles, self.prefill_chunk)
