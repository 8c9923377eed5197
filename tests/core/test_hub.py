"""A hub that is out of reach is asked once, and its libraries' caches are read without it."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from linearize_hovle.adapter import HovleAdapter
from linearize_hovle.config import HovleTeacherConfig
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig

from linearize.data.hub_dataset import HubDatasetConfig, HubDatasetSource
from linearize.errors import LinearizeError
from linearize.files import hub

NOBODY = "http://127.0.0.1:9"


class Answer(http.server.BaseHTTPRequestHandler):
    """Says 404 and counts."""

    asked = 0

    def do_HEAD(self) -> None:
        type(self).asked += 1
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody answers at the hub's address; waiting for a retry is an error."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", sleep)
    hub._obstacle.cache_clear()
    yield
    hub._obstacle.cache_clear()


@pytest.mark.parametrize(
    "read",
    [
        lambda: TransformersAdapter(TransformersTeacherConfig(checkpoint="linearize-tests/nothing")).sites(),
        lambda: HovleAdapter(HovleTeacherConfig(checkpoint="linearize-tests/nothing")).sites(),
        lambda: HubDatasetSource(HubDatasetConfig(path="linearize-tests/nothing")),
    ],
    ids=["transformers", "hovle", "hub_dataset"],
)
def test_what_is_only_on_a_hub_out_of_reach_is_refused_at_once_with_what_to_do(read: Any) -> None:
    with pytest.raises(LinearizeError) as caught:
        read()
    text = str(caught.value)
    assert "it is not in the hub's cache on this machine, and the hub cannot be asked: http://127.0.0.1:9 does" in text
    assert "HF_HUB_OFFLINE=1 reads the cache without asking" in text
    assert "\n" not in text
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked_as_ever_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        for _ in range(3):
            with hub.asked_once("a/b") as obstacle:
                assert (obstacle, constants.HF_HUB_OFFLINE) == ("", False)
        assert Answer.asked == 1
    finally:
        server.shutdown()
        server.server_close()
    error = ValueError("no such repository")
    assert hub.failure(error, "") == "ValueError: no such repository"
    assert hub.failure(error, "not there") == "ValueError: no such repository"


def test_the_hub_is_not_asked_for_a_folder_or_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub.asked_once(str(tmp_path)) as obstacle:
        assert (obstacle, constants.HF_HUB_OFFLINE) == ("", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.asked_once("a/b") as obstacle:
        assert obstacle.startswith("HF_HUB_OFFLINE is set.")
    assert constants.HF_HUB_OFFLINE
    assert hub._obstacle.cache_info().misses == 0
