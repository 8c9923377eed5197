"""The `[compare]` table: which keys of a recipe are varied, and how often each variant is run."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from linearize.plugin.config import Config

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class CellTable(Config):
    """A variant with a name of its own."""

    name: str = Field(pattern=NAME, description="stands in the table and names the folder of its runs")
    set: dict[str, Any] = Field(
        default={},
        description="keys of the recipe with their values in this cell, such as student.mixer.conv_width = 4",
    )


class CompareTable(Config):
    """What `linearize compare` varies; every combination of the alternatives and the cells is run."""

    name: str | None = Field(
        default=None, pattern=NAME, description="the folder is runs/<name>; absent: run.name with -compare behind it"
    )
    seeds: int = Field(default=1, gt=0, description="runs per cell; from two on, intervals know of the seeds' noise")
    seconds: float | None = Field(
        default=None,
        gt=0,
        description="training time of every run in seconds: each cell's stages are lengthened or shortened by one "
        "factor to fill it, by the time of a step, which is measured first; absent: steps are the recipe's",
    )
    timing_steps: int = Field(default=30, gt=1, description="optimizer steps of each stage that are timed for it")
    vary: dict[str, Any] = Field(
        default={}, description="key of the recipe -> list of alternatives: stages.distill.lr = [1e-3, 2e-3]"
    )
    cells: tuple[CellTable, ...] = Field(default=(), description="variants of several keys at once")
    decode_tokens: int = Field(
        default=32, ge=0, description="tokens that each model generates per prompt for its speed; 0: not measured"
    )
    decode_rounds: int = Field(default=5, gt=0, description="times that each model's speed is measured, in turn")
