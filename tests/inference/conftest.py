"""A student and a hybrid of the embedded HoVLE, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from talks import Talk, make_talk

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    return make_talk(tmp_path_factory.mktemp("runs") / "demo", "mmmamba_hovle.toml")


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    return make_talk(tmp_path_factory.mktemp("runs") / "hybrid", "mmmamba_hovle_hybrid.toml")


@pytest.fixture
def picture(talk: Talk, tmp_path: Path) -> Path:
    file = tmp_path / "a picture.png"
    talk.picture.save(file)
    return file
