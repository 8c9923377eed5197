"""The options of data source ``text``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from linearize.plugin.config import Config


class TextConfig(Config):
    """Where documents are, and how they become rows of tokens."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="files (.txt, .md, .jsonl, .json, .parquet), folders of them or patterns such as docs/*.txt, one "
        "or a list; or a dataset's hub id, or a folder that save_to_disk wrote",
    )
    key: str = Field(default="text", description="the key or column with the text, where documents are records")
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="what stands between two documents of a plain text file; absent: a file is one document",
    )
    subset: str | None = Field(default=None, description="the hub dataset's configuration; absent: its default one")
    split: str = Field(default="train", description="the hub dataset's split, or a part of one such as train[:10%]")
    revision: str | None = Field(default=None, description="a commit or tag of the hub's repository; hub ids only")
    streaming: bool = Field(
        default=False,
        description="read documents as rows are asked for, in their own order and again from the first; the corpus is "
        "never held in memory, and its size is not known",
    )
    tokens: int = Field(default=2048, ge=2, description="tokens of a row")
    rows: Literal["joined", "documents"] = Field(
        default="joined",
        description="joined: documents are laid end to end and cut every `tokens` tokens, the last incomplete row is "
        "left out; documents: a row holds one document, a longer one takes several rows",
    )
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the documents that is kept from training, chosen by a hash of their text",
    )
    part: Literal["train", "held_out"] = Field(default="train", description="which documents are read")
    shuffle: bool = Field(default=True, description="whether each epoch has an order of its own, drawn from run.seed")
    max_bad: Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.01,
        description="bad documents that are skipped before the data are refused: a count, or a share below 1",
    )

    @model_validator(mode="after")
    def _held_out_part_exists(self) -> Self:
        if self.part == "held_out" and not self.held_out:
            raise ValueError(
                "part = 'held_out' is asked for, but held_out = 0 keeps no document from training; set held_out to the "
                "share that training leaves out, such as 0.01, in both places"
            )
        return self
