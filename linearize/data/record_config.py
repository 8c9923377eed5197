"""The options that every data source has whose records are somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from linearize.data.record import SystemHandling
from linearize.plugin.config import Config


class RecordConfig(Config):
    """How records are read, wherever they come from."""

    path: Path | str = Field(description="where the records are")
    images: Path | None = Field(
        default=None, description="the folder that image names are relative to; absent: the folder that path lies in"
    )
    shuffle: bool = Field(default=True, description="whether each epoch has an order of its own, drawn from run.seed")
    max_bad: Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.01,
        description="bad records that are skipped before the data are refused: a count, or a share below 1",
    )
    max_tokens: int = Field(
        default=16384,
        ge=1,
        description="tokens of a whole conversation, images included; what is longer is dealt with as too_long says",
    )
    too_long: Literal["skip", "truncate"] = Field(
        default="skip",
        description="what becomes of a longer one: skip it, or keep as many of its first turns as fit, or as many "
        "words of its first answer; either is counted and named, apart from bad records",
    )
    system: SystemHandling = Field(
        default="refuse",
        description="a record's system message: refuse the record, prepend it to the first question, or drop it",
    )
    exif_rotation: bool = Field(
        default=True, description="whether images are turned upright as their EXIF orientation says"
    )
    image: str | None = Field(
        default=None, description='the key or column with an image or a list of them; absent: "image" or "images"'
    )
    conversations: str | None = Field(
        default=None,
        description="the key or column with messages; "
        'absent: "conversations", "messages" or "texts", unless question and answer are named',
    )
    question: str | None = Field(
        default=None, description="the key or column with one question, in the place of messages"
    )
    answer: str | None = Field(default=None, description="the key or column with its answer")

    @model_validator(mode="after")
    def _turns_come_from_one_place(self) -> Self:
        pair = {"question": self.question, "answer": self.answer}
        named = [f"{name} = '{column}'" for name, column in pair.items() if column is not None]
        if len(named) == 1:
            missing = next(name for name, column in pair.items() if column is None)
            raise ValueError(f"{named[0]} is given without {missing}; name the column with the {missing}, too")
        if named and self.conversations is not None:
            raise ValueError(
                f"conversations = '{self.conversations}' is given beside {' and '.join(named)}; turns come either from "
                "a column of messages or from a question and an answer: leave out the one or the other"
            )
        return self
