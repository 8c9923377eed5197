"""How an answer is decoded: the ways through plain ``generate()`` in which every model of a bench is measured alike."""

from __future__ import annotations

from typing import Any

from transformers import CompileConfig, GenerationConfig, StaticCache
from transformers.cache_utils import Cache, DynamicCache

from linearize.report.speed import EAGER, STATIC
from linearize.student.static_state import linear_sites, static_cache

ENGINES = {
    EAGER: "a growing cache, one kernel after another",
    STATIC: "cache_implementation='static'; on an accelerator the step is compiled and replayed as a graph",
}
"""Name -> what it is, in the words of messages and pages."""


def generation_config(engine: str, new_tokens: int, *, compiles: bool, prefill_chunk: int = 0) -> GenerationConfig:
    """Greedy answers of exactly ``new_tokens`` tokens.

    Args:
        compiles: whether a CPU compiles the static step too; accelerators do in any case.
        prefill_chunk: tokens of the prompt that are read at a time; 0: all.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None,
        cache_implementation="dynamic" if engine == EAGER else "static",
    )  # fmt: skip
    if prefill_chunk:
        config.prefill_chunk_size = prefill_chunk
    if engine == STATIC and compiles:
        config.compile_config = CompileConfig()
        config.compile_config._compile_all_devices = True
    return config


def empty_cache(model: Any, engine: str, rows: int, max_length: int) -> Cache:
    """The cache that ``generate()`` would make by itself for so many rows, to be filled first."""
    config = model.config.get_text_config(decoder=True)
    if engine == EAGER:
        return DynamicCache(config=config)
    if linear_sites(model):
        return static_cache(model, rows, max_length)
    return StaticCache(config=config, max_cache_len=max_length)
