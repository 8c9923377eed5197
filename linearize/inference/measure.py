"""What one model takes to read a prompt and to decode: time to the first token, time of a further one, memory.

Prompts are random ids of ordinary tokens: neither time nor memory depends on what they say.

Letters: B batch, T tokens.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer

from linearize.inference.engines import empty_cache, generation_config
from linearize.student.state import CACHE_NAME, RecurrentStateLayer, passed_cache, state_layer
from linearize.student.static_state import StaticStateLayer, linear_sites

UNTIMED = 3
"""First tokens of an answer that do not count: a graph may be captured in them."""
FEWEST_NEW_TOKENS = UNTIMED + 2
ROOM = 0.9
"""Share of the memory that is free which a first batch may fill."""
LOGITS_BYTES = 12
"""Of each token of the vocabulary and row, while one is chosen: bfloat16, float32, and a copy."""
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
"""What torch says where it has no class of error for it."""


@dataclass(frozen=True, slots=True)
class Way:
    """How answers of a bench are measured.

    Attributes:
        engine: a name of ``linearize.inference.engines``.
        new_tokens: tokens of an answer; all but the first ``UNTIMED`` and one count.
        compiles: whether a CPU compiles the static step, too.
        prefill_chunk: tokens that models with linear sites read at a time; 0: all.
    """

    engine: str
    new_tokens: int
    compiles: bool = False
    prefill_chunk: int = 0

    def config(self, model: Any, *, returns_cache: bool = False) -> GenerationConfig:
        """What is passed to ``generate()``; an answer whose cache is returned may be decoded in another way."""
        # Of a model that attends everywhere, transformers compiles a prompt that it reads in pieces.
        chunk = self.prefill_chunk if linear_sites(model) else 0
        config = generation_config(self.engine, self.new_tokens, compiles=self.compiles, prefill_chunk=chunk)
        config.return_dict_in_generate = returns_cache
        return config


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt, or a batch of them, read and answered.

    Attributes:
        first_ms: milliseconds until the first token.
        token_ms: mean milliseconds of a further token of every row, the first ones left out.
        cache_bytes: what the cache holds at the end: states, keys and values; 0 where it was not returned.
    """

    first_ms: float
    token_ms: float
    cache_bytes: int


class Clock(StoppingCriteria):
    """Notes when three tokens of an answer are there: the first, the last that is not timed, the last. Stops nothing.

    It waits for the device at these alone: between them the device need not wait for Python, nor Python for the device.
    """

    def __init__(self, device: torch.device, new_tokens: int) -> None:
        self.device = device
        self.waits_at = (1, 1 + UNTIMED, new_tokens)
        self.num_tokens = 0
        self.seconds: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """False for every row."""
        self.num_tokens += 1
        if self.num_tokens in self.waits_at:
            wait_for(self.device)
            self.seconds.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def prompt_ids(model: Any, num_tokens: int) -> Tensor:
    """One prompt, [1, T], the same at every call; no token of it stands for an image, an end, or the like."""
    special = set(_special_ids(model.config.to_dict()))
    size = int(model.config.get_text_config(decoder=True).vocab_size)
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    drawn_T = torch.randint(len(ordinary), (num_tokens,), generator=torch.Generator().manual_seed(num_tokens))
    return ordinary[drawn_T][None].to(model.device)


def answer(model: Any, way: Way, ids_BT: Tensor, *, returns_cache: bool = False) -> Answer:
    """Reads prompts and decodes, by one call of ``generate()``."""
    config, mask_BT = way.config(model, returns_cache=returns_cache), torch.ones_like(ids_BT)
    return _generate(model, config, way.new_tokens, input_ids=ids_BT, attention_mask=mask_BT)


def answer_in_rows(model: Any, way: Way, ids_1T: Tensor, rows: int) -> Answer:
    """Decodes so many rows, each behind the same prompt, which is read once where the cache can be copied.

    A batch that fits while it decodes may take minutes to read. ``first_ms`` is then that of a token behind the prompt.
    """
    start = Way("eager", 1, prefill_chunk=way.prefill_chunk).config(model, returns_cache=True)
    read = model.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=start)
    row = passed_cache(read)
    if row is None or not all(map(_can_be_copied, row.layers)):
        del read, row
        return answer(model, way, ids_1T.repeat(rows, 1))
    cache = empty_cache(model, way.engine, rows, ids_1T.shape[1] + way.new_tokens)
    fill(cache, row, rows)
    token_B1 = read.sequences[:, -1:].repeat(rows, 1)
    del read, row
    config = way.config(model)
    config.cache_implementation, config.prefill_chunk_size = None, None  # the cache is here, and the prompt in it
    mask_BT = torch.ones(rows, ids_1T.shape[1] + 1, dtype=torch.long, device=ids_1T.device)
    return _generate(model, config, way.new_tokens, input_ids=token_B1, attention_mask=mask_BT, **{CACHE_NAME: cache})


def fill(cache: Cache, row: Cache, rows: int) -> None:
    """Lets every row of an empty cache hold what the one row of another does."""
    for index, layer in enumerate(row.layers):
        if isinstance(layer, RecurrentStateLayer):
            slot = state_layer(cache, index, functools.partial(RecurrentStateLayer, layer.stored))
            states = {name: state.expand(rows, *state.shape[1:]) for name, state in (layer.read() or {}).items()}
            if not isinstance(slot, StaticStateLayer):  # which copies; this one keeps what it gets
                states = {name: state.contiguous() for name, state in states.items()}
                slot.stands_alone = layer.stands_alone
            slot.put(int(layer.get_seq_length()), states)
        else:
            keys, values = (part.expand(rows, *part.shape[1:]) for part in (layer.keys, layer.values))
            cache.update(keys, values, index)


def bytes_held(cache: Cache | None) -> int:
    """Of all tensors in a cache."""
    held: dict[int, int] = {}
    for layer in cache.layers if cache is not None else ():
        for value in vars(layer).values():
            for tensor in value.values() if isinstance(value, Mapping) else (value,):
                if isinstance(tensor, Tensor) and tensor.numel():
                    held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(held.values())


def weight_bytes(model: Any) -> int:
    """Of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def room_for_rows(model: Any, device: torch.device, cache_bytes: int) -> int | None:
    """About how many rows, each with a cache of so many bytes, an accelerator has room for; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    return max(1, int(ROOM * free / (cache_bytes + LOGITS_BYTES * vocabulary)))


class Peak:
    """The most memory of an accelerator since it was made, less what others held then; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)

    def bytes(self, model: Any) -> int | None:
        """With the model's weights, which were there before."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) - self.before + weight_bytes(model)


@contextmanager
def telling_memory(device: torch.device) -> Iterator[None]:
    """Turns what torch raises when memory is out into MemoryError, and gives back what was held.

    Raises:
        MemoryError: with the first line of what torch says.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        text = str(error).splitlines()[0]
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not any(sign in text for sign in CPU_OUT_OF_MEMORY):
            raise
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise MemoryError(text)


def wait_for(device: torch.device) -> None:
    """Until all that was begun on an accelerator is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _generate(model: Any, config: GenerationConfig, new_tokens: int, **inputs: Any) -> Answer:
    clock = Clock(model.device, new_tokens)
    wait_for(model.device)
    begin = time.perf_counter()
    output = model.generate(**inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([clock]))
    first, start, end = clock.seconds
    cache = passed_cache(output) if isinstance(output, Mapping) else None
    token_ms = 1e3 * (end - start) / (new_tokens - 1 - UNTIMED)
    return Answer(1e3 * (first - begin), token_ms, bytes_held(cache))


def _can_be_copied(layer: Any) -> bool:
    return isinstance(layer, RecurrentStateLayer) or (type(layer) is DynamicLayer and layer.is_initialized)


def _special_ids(config: Mapping[str, Any]) -> Iterator[int]:
    """Every id of a token that a configuration names, at any depth."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_ids(value)
        elif str(name).endswith(("token_id", "token_index")):
            for each in value if isinstance(value, list | tuple) else (value,):
                if isinstance(each, int):
                    yield each
