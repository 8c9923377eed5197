"""Checkpoints of the families, made once a session, and their adapters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.support import FAMILIES, Family

sys.path.insert(0, str(Path(__file__).parent))

BY_NAME = {family.model_type: family for family in FAMILIES}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny checkpoint."""
    from checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(BY_NAME[name], tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session", params=list(BY_NAME))
def family(request: pytest.FixtureRequest) -> Family:
    return BY_NAME[request.param]


@pytest.fixture(scope="session")
def family_adapter(family: Family, checkpoint: Callable[[str], Path]) -> TransformersAdapter:
    from checkpoints import LoadsOnce

    return LoadsOnce(TransformersTeacherConfig(checkpoint=str(checkpoint(family.model_type))))


@pytest.fixture(scope="session")
def adapter(family_adapter: TransformersAdapter) -> TransformersAdapter:
    return family_adapter
