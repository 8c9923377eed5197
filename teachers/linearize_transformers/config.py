"""What a recipe may say about a teacher of the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from linearize.plugin.config import Config


class TransformersTeacherConfig(Config):
    """The ``[teacher]`` table of a recipe with ``type = "transformers"``."""

    checkpoint: str = Field(
        min_length=1,
        description='a folder in transformers\' layout, or a hub id such as "HuggingFaceTB/SmolVLM-256M-Instruct"',
    )
    revision: str = Field(default="main", min_length=1, description="branch, tag or commit of a hub id")
    attention: str = Field(
        default="auto",
        pattern="^(auto|sdpa|eager|flash_attention_2)$",
        description="what computes softmax attention: auto (as transformers chooses), sdpa, eager or flash_attention_2",
    )
    adapters: tuple[str, ...] = Field(
        default=(),
        description="LoRA adapters to merge into the weights, in order: folders, or folders inside the checkpoint such "
        'as "vision-lora" of Phi-4 multimodal',
    )
    chat_template: str = Field(
        default="",
        description="Jinja text, or the path of a file that holds it; empty: the checkpoint's own",
    )
    processor: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the checkpoint's processor to change, such as { do_image_splitting = false }",
    )

    @field_validator("chat_template")
    @classmethod
    def _read(cls, value: str) -> str:
        if not value or "{" in value:
            return value
        path = Path(value).expanduser()
        if not path.is_file():
            raise ValueError(f"'{value}' is neither Jinja text (it holds no brace) nor an existing file")
        return path.read_text(encoding="utf-8")
