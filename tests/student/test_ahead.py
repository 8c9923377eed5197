"""A step ahead of the answer's end: the same tokens, one step too many, and never where a cache is seen afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation import utils as generation_utils
from transformers.generation.streamers import BaseStreamer

from linearize.student import ahead
from linearize.student.convert import release_teacher
from linearize.student.state import CACHE_NAME

pytestmark = pytest.mark.skipif(
    not hasattr(generation_utils, "DeferredStopCheck"), reason="transformers 5.24 asks a step late; this one cannot"
)


class Event:
    """What a CPU lacks, and does not need: it is never behind."""

    def __init__(self, device: Any, blocking: bool) -> None:
        del device, blocking

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture(autouse=True)
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "ACCELERATORS", ("cpu",))
    monkeypatch.setattr(torch, "Event", Event)


class Calls:
    def __init__(self, model: Any) -> None:
        self.number = 0
        model.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.number += 1


class Kept(BaseStreamer):
    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.rows.append(value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1))

    def end(self) -> None:
        pass


def _generate(model: Any, inputs: dict[str, Any], *, more: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(4)
    config = GenerationConfig(
        **{"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "bos_token_id": 1} | options
    )
    return model.generate(**inputs, generation_config=config, **(more or {}))


def _ends(model: Any, inputs: dict[str, Any], **options: Any) -> list[int]:
    """Two tokens of the answers, so that rows end early and not together."""
    with_mine = _generate(model, inputs, **options)[:, inputs["input_ids"].shape[1] :]
    return [int(with_mine[0, 2]), int(with_mine[1, 5])]


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"do_sample": True}], ids=str)
def test_an_answer_is_the_same_and_costs_one_step_more_where_rows_end(
    llama: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama.convert()
    release_teacher(model)
    options = {**options, "eos_token_id": _ends(model, llama.inputs, **options)}
    calls = Calls(model)
    found, with_ahead = _generate(model, llama.inputs, **options), calls.number
    monkeypatch.setattr(ahead, "ACCELERATORS", ())
    calls.number = 0
    assert torch.equal(found, _generate(model, llama.inputs, **options))
    assert found.shape[1] < llama.inputs["input_ids"].shape[1] + 12
    assert with_ahead == calls.number + 1


def test_the_greatest_length_needs_no_step_more(llama: Any) -> None:
    model = llama.convert()
    calls = Calls(model)
    assert _generate(model, llama.inputs).shape[1] == llama.inputs["input_ids"].shape[1] + 12
    assert calls.number == 12


def test_a_streamer_gets_every_token_and_no_more(llama: Any) -> None:
    model, inputs = llama.convert(), {name: tensor[1:] for name, tensor in llama.inputs.items()}
    end = int(_generate(model, inputs)[0, inputs["input_ids"].shape[1] + 4])
    streamer = Kept()
    found = _generate(model, inputs, eos_token_id=end, more={"streamer": streamer})
    assert torch.equal(torch.cat(streamer.rows, 1), found)


@pytest.mark.parametrize("how", ["returned", "passed", "processes wait"])
def test_it_is_not_done_where_the_step_too_many_would_be_seen(llama: Any, how: str) -> None:
    model, cache = llama.convert(), DynamicCache()
    options: dict[str, Any] = {"eos_token_id": _ends(model, llama.inputs)}
    more: dict[str, Any] = {}
    if how == "returned":
        options["return_dict_in_generate"] = True
    elif how == "passed":
        more[CACHE_NAME] = cache
    else:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        more["synced_gpus"] = True
    calls = Calls(model)
    try:
        found = _generate(model, llama.inputs, more=more, **options)
    finally:
        if how == "processes wait":
            torch.distributed.destroy_process_group()
    ids = found.sequences if how == "returned" else found
    assert calls.number == ids.shape[1] - llama.inputs["input_ids"].shape[1]


def test_models_without_linear_sites_decode_as_ever(llama: Any) -> None:
    ends = [int(token) for token in _generate(llama.model, llama.inputs)[:, 13]]
    calls = Calls(llama.model)
    found = _generate(llama.model, llama.inputs, eos_token_id=ends)
    assert calls.number == found.shape[1] - llama.inputs["input_ids"].shape[1] < 12


def test_a_criterion_that_is_asked_otherwise_is_left_as_it_is() -> None:
    class Later:
        @staticmethod
        def is_supported(device: torch.device, cache: Any, *, streams: bool = False) -> bool:
            return streams

    class Without:
        pass

    own = Later.is_supported
    for check in (Later, Without):
        ahead._teach(check)
    assert Later.is_supported is own
    assert not hasattr(Without, "is_supported")
