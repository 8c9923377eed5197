"""The options that every data source has whose records are somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from linearize.data.llava_record import SystemHandling
from linearize.plugin.config import Config


class RecordConfig(Config):
    """What is done with records as they are found."""

    path: Path | str = Field(description="where the records are")
    shuffle: bool = Field(default=True, description="whether each epoch has an order of its own, drawn from run.seed")
    max_bad: Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.01,
        description="bad records that are skipped before the data are refused: a count, or a share below 1",
    )
    system: SystemHandling = Field(
        default="refuse",
        description="a record's system message: refuse the record, prepend it to the first question, or drop it",
    )
