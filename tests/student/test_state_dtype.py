"""Memories that are kept in bfloat16 between calls: for every mixer, both kinds of cache, and a saved student."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

import linearize
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student.convert import linearized_sites, release_teacher
from linearize.student.modeling import load_student, save_student
from linearize.student.state import CACHE_NAME, stored_dtypes
from linearize.testing.graphs import Graphs, compiled_by

MIXERS = sorted(spec.name for spec in Plugins.discover().registry.all(MixerSpec) if spec.name != "toy")
MEMORIES = {"gsa": 2, "sliding_window": 0}
"""Tensors that a mixer remembers in, where they are not one."""


def _student(llama: Any, mixer: str = "mamba2", **options: Any) -> Any:
    llama.sites = [dataclasses.replace(site, num_layers=4) for site in llama.sites]
    model = llama.convert(None, Plugins.discover().registry.get(MixerSpec, mixer), **options)
    release_teacher(model)
    return model


def _bytes(cache: Any) -> int:
    return sum(state.nbytes for layer in cache.layers for state in layer.states.values())


@torch.no_grad()
def _logits_of_steps(model: Any, ids_BT: Tensor, cache: Any) -> Tensor:
    """Of every token after the first 6, which are the prompt."""
    pieces = [ids_BT[:, :6], *ids_BT[:, 6:].split(1, 1)]
    logits = [model(input_ids=piece, use_cache=True, **{CACHE_NAME: cache}).logits[:, -1:] for piece in pieces]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("mixer", MIXERS)
def test_memories_are_kept_in_bfloat16_and_all_else_as_its_mixer_gave_it(llama: Any, mixer: str) -> None:
    model, ids_BT = _student(llama, mixer), llama.inputs["input_ids"][1:]
    given: list[dict[str, torch.dtype]] = []
    model.model.layers[0].self_attn.mixer.register_forward_pre_hook(
        lambda _, __, kwargs: given.append({name: state.dtype for name, state in (kwargs["state"] or {}).items()}),
        with_kwargs=True,
    )
    exact = DynamicCache()
    expected = _logits_of_steps(model, ids_BT, exact)
    model.config.state_dtype = "bfloat16"
    caches = [DynamicCache(), linearize.static_cache(model, batch_size=1, max_length=40)]
    found = [_logits_of_steps(model, ids_BT, cache) for cache in caches]
    torch.testing.assert_close(found[0], found[1])
    own = {name: state.dtype for name, state in exact.layers[0].states.items()}  # type: ignore[attr-defined]
    for cache in caches:
        dtypes = {name: state.dtype for name, state in cache.layers[0].states.items()}
        other = [name for name in dtypes if dtypes[name] != own[name]]
        assert len(other) == MEMORIES.get(mixer, 1)
        assert all((own[name], dtypes[name]) == (torch.float32, torch.bfloat16) for name in other)
    assert [dtypes for dtypes in given if dtypes and dtypes != own] == []
    if MEMORIES.get(mixer) == 0:
        assert torch.equal(found[0], expected)
        return
    memories = sum(layer.states[name].nbytes for layer in exact.layers for name in other)  # type: ignore[attr-defined]
    assert [_bytes(cache) for cache in caches] == [_bytes(exact) - memories // 2] * 2
    # bfloat16 rounds by up to 2^-9 at each of 6 tokens and 4 sites; what a memory says is a sum of such numbers.
    error = float((found[0] - expected).norm() / expected.norm())
    assert 0 < error < 24 * 2**-9


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["gsa", "mamba3"])
def test_a_compiled_step_over_memories_in_bfloat16_is_one_graph(llama: Any, mixer: str) -> None:
    torch._dynamo.reset()
    model, graphs = _student(llama, mixer), Graphs()
    model.config.state_dtype = "bfloat16"
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "bos_token_id": 1}
    growing = model.generate(**llama.inputs, generation_config=GenerationConfig(**options))
    fixed = GenerationConfig(**options, cache_implementation="static", compile_config=compiled_by(graphs))
    assert torch.equal(model.generate(**llama.inputs, generation_config=fixed), growing)
    assert graphs.number == 1
    torch._dynamo.reset()


def test_a_saved_student_keeps_its_state_dtype_and_whoever_loads_it_may_choose_another(
    llama: Any, tmp_path: Path
) -> None:
    model = _student(llama)
    model.config.state_dtype = torch.bfloat16
    save_student(model, tmp_path / "narrow")
    for loaded in (load_student(tmp_path / "narrow"), AutoModelForCausalLM.from_pretrained(tmp_path / "narrow")):
        assert loaded.config.state_dtype == "bfloat16"
        cache = linearize.static_cache(loaded, batch_size=1, max_length=8)
        assert cache.layers[0].states["ssm"].dtype == torch.bfloat16  # type: ignore[attr-defined]
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", state_dtype="float32")
    cache = linearize.static_cache(wide, batch_size=1, max_length=8)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", state_dtype=torch.bfloat16)
    assert narrow.config.state_dtype == "bfloat16"
    assert cache.layers[0].states["ssm"].dtype == torch.float32  # type: ignore[attr-defined]
    wide.save_pretrained(tmp_path / "wide")
    assert load_student(tmp_path / "wide").config.state_dtype == "float32"


def test_a_cache_keeps_the_dtype_that_it_was_made_with(llama: Any) -> None:
    model, cache = _student(llama), DynamicCache()
    _logits_of_steps(model, llama.inputs["input_ids"][1:, :8], cache)
    model.config.state_dtype = "bfloat16"
    _logits_of_steps(model, llama.inputs["input_ids"][1:, :8], cache)
    assert cache.layers[0].states["ssm"].dtype == torch.float32  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", ["float16", "bf16", None])
def test_other_state_dtypes_are_refused(llama: Any, wrong: Any, tmp_path: Path) -> None:
    model = _student(llama)
    save_student(model, tmp_path / "student")
    model.config.state_dtype = wrong
    expected = f"state_dtype is {wrong!r}; expected 'float32' or 'bfloat16'"
    with pytest.raises(ValueError, match=expected):
        linearize.static_cache(model, batch_size=1, max_length=8)
    with pytest.raises(ValueError, match=expected):
        model(**llama.inputs, use_cache=True)
    with pytest.raises(ValueError, match=expected):
        AutoModelForCausalLM.from_pretrained(tmp_path / "student", state_dtype=wrong)


def test_a_mixer_that_tells_no_dtypes_of_its_state_is_named(llama: Any) -> None:
    model = llama.convert()
    mixer = linearized_sites(model)[0].mixer
    assert stored_dtypes(mixer, model.config) == {}
    model.config.state_dtype = "bfloat16"
    with pytest.raises(ValueError, match=r"a ToyMixer has no empty_state\(\)"):
        model(**llama.inputs, use_cache=True)
