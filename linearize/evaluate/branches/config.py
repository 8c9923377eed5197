"""Options of the evaluator "branches"."""

from __future__ import annotations

from pydantic import Field

from linearize.plugin.config import Config


class BranchesConfig(Config):
    """Which questions the branches are measured by."""

    questions: int = Field(default=25, gt=0, description="the first so many questions of each task are gone through")
