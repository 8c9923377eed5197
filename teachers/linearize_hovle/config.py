"""What a recipe may say about a HoVLE teacher."""

from __future__ import annotations

from pydantic import Field

from linearize.plugin.config import Config


class HovleTeacherConfig(Config):
    """The ``[teacher]`` table of a recipe with ``type = "hovle"``."""

    checkpoint: str = Field(
        default="embedded",
        min_length=1,
        description='"embedded" for the small model inside this package, a folder in the published layout, or a hub id '
        'such as "OpenGVLab/HoVLE"',
    )
