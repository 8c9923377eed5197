"""Decoding with a cache of fixed size: the same tokens, in one graph that is never made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, StaticCache

import linearize
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student import generation, static_state
from linearize.student.convert import convert, linearized_sites, release_teacher, set_linear
from linearize.student.mixers import build_mixer
from linearize.testing.graphs import Graphs, compiled_by

LAYOUTS = ("all", "hybrid")
MIXERS = sorted(spec.name for spec in Plugins.discover().registry.all(MixerSpec) if spec.name != "toy")
FIXED = {"cache_implementation": "static"}


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def _compiled(graphs: Graphs) -> dict[str, Any]:
    return {"compile_config": compiled_by(graphs)}


def _generate(model: Any, inputs: dict[str, Any], *, cache: Any = None, **options: Any) -> Tensor:
    torch.manual_seed(4)
    options = {"max_new_tokens": 6, "do_sample": False} | options
    config = GenerationConfig(pad_token_id=0, bos_token_id=1, suppress_tokens=[60], **options)
    ids: Tensor = model.generate(
        **inputs, generation_config=config, **({} if cache is None else {"past_key_values": cache})
    )
    return ids


def _student(teacher: Any, layout: str, mixer: str | None = None) -> Any:
    spec = [] if mixer is None else [Plugins.discover().registry.get(MixerSpec, mixer)]
    model = teacher.convert(None if layout == "all" else teacher.hybrid, *spec)
    release_teacher(model)
    return model


def _longer(inputs: dict[str, Any]) -> dict[str, Any]:
    more = torch.randint(2, 59, (2, 7), generator=torch.Generator().manual_seed(8))
    ids = torch.cat([inputs["input_ids"], more], 1)
    return inputs | {
        "input_ids": ids,
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("teacher", ["llama", "smolvlm", "hovle"], indirect=True)
def test_a_step_is_one_graph_that_serves_longer_prompts_too(teacher: Any, layout: str, graphs: Graphs) -> None:
    """In a hybrid the kept keys and values have a size, which a ceiling fixes for all calls."""
    model = _student(teacher, layout)
    ceiling = {} if layout == "all" else {"max_cache_len": 40}
    for inputs in (teacher.inputs, _longer(teacher.inputs), teacher.inputs):
        for options in ({"do_sample": False}, {"do_sample": True, "temperature": 1.3}):
            expected = _generate(model, inputs, **options)
            found = _generate(model, inputs, **options, **FIXED, **ceiling, **_compiled(graphs))
            assert torch.equal(found, expected)
    assert graphs.number == 1


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_decodes_in_one_graph(llama: Any, mixer: str, graphs: Graphs) -> None:
    llama.sites = [dataclasses.replace(site, num_layers=4) for site in llama.sites]
    model = _student(llama, "hybrid", mixer)
    expected = _generate(model, llama.inputs)
    assert torch.equal(_generate(model, llama.inputs, **FIXED, **_compiled(graphs)), expected)
    assert graphs.number == 1


def test_mixers_that_differ_from_site_to_site_decode_in_one_graph(llama: Any, graphs: Graphs) -> None:
    names = ["gla", "mamba2", "swa_linear"]
    specs = [Plugins.discover().registry.get(MixerSpec, name) for name in names]
    mixers = {}
    for site, spec in zip(llama.sites, specs, strict=False):
        mixers[site.index] = build_mixer(spec, spec.config_class()(), site)
        mixers[site.index].initialize("scratch", torch.Generator().manual_seed(2))
    convert(llama.model, llama.sites, mixers)
    set_linear(llama.model, mixers)
    expected = _generate(llama.model, llama.inputs)
    assert torch.equal(_generate(llama.model, llama.inputs, **FIXED, **_compiled(graphs)), expected)
    assert graphs.number == 1


@pytest.mark.parametrize("pads", [0, 2])
def test_one_row_is_one_graph_too(llama: Any, pads: int, graphs: Graphs) -> None:
    model = _student(llama, "all")
    inputs = {name: tensor[:1].clone() for name, tensor in llama.inputs.items()}
    inputs["attention_mask"][:] = 1
    inputs["attention_mask"][:, :pads] = 0
    expected = _generate(model, inputs)
    assert torch.equal(_generate(model, inputs, **FIXED, **_compiled(graphs)), expected)
    assert graphs.number == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_made_before_serves_prompt_after_prompt(llama: Any, layout: str, graphs: Graphs) -> None:
    model = _student(llama, layout)
    cache = linearize.static_cache(model, batch_size=2, max_length=40)
    assert isinstance(cache, StaticCache)
    for inputs in (_longer(llama.inputs), llama.inputs):
        expected = _generate(model, inputs)
        assert torch.equal(_generate(model, inputs, cache=cache, **_compiled(graphs)), expected)
        assert int(cache.get_seq_length()) == expected.shape[1] - 1
        cache.reset()
        assert int(cache.get_seq_length()) == 0
    assert graphs.number == 1


@torch.no_grad()
def test_states_stay_where_a_cache_made_before_has_put_them(llama: Any) -> None:
    model = _student(llama, "all", "mamba2")
    cache = linearize.static_cache(model, batch_size=2, max_length=40)
    addresses = [[state.data_ptr() for state in slot.states.values()] for slot in cache.layers]
    assert all(addresses)
    for inputs in (_longer(llama.inputs), llama.inputs):
        assert torch.equal(_generate(model, inputs, cache=cache), _generate(model, inputs))
        cache.reset()
    assert [[state.data_ptr() for state in slot.states.values()] for slot in cache.layers] == addresses


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_beams_write_their_order_in_place(llama: Any, layout: str) -> None:
    model = _student(llama, layout, "mamba2")
    expected = _generate(model, llama.inputs, num_beams=3)
    assert torch.equal(_generate(model, llama.inputs, num_beams=3, **FIXED), expected)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, FIXED], ids=["growing", "fixed size"])
def test_a_prompt_in_pieces_is_read_as_in_one(llama: Any, layout: str, options: dict[str, Any], graphs: Graphs) -> None:
    """And never in a graph, of which each length would need its own."""
    model, output = _student(llama, layout), {"return_dict_in_generate": True, "output_logits": True}
    config = _compiled(graphs) if options else {}
    for chunk in (1, 3, 4):
        whole = _generate(model, llama.inputs, **output)
        pieces = _generate(model, llama.inputs, prefill_chunk_size=chunk, **output, **options, **config)
        assert torch.equal(pieces.sequences, whole.sequences)  # type: ignore[attr-defined]
        for mine, expected in zip(pieces.logits, whole.logits, strict=True):  # type: ignore[attr-defined]
            # fp32: the same sums in another order.
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    assert graphs.number == (1 if options else 0)


@torch.no_grad()
def test_a_linear_student_reads_a_prompt_with_no_mask_over_what_came_before(llama: Any) -> None:
    """A mask of pieces by prompt would grow with the prompt: a million tokens in pieces of 8,192 would take 8 GB."""
    model, widths = _student(llama, "all", "mamba2"), list[int]()

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["attention_mask"] is not None:
            widths.append(kwargs["attention_mask"].shape[-1])

    for slot in linearized_sites(model):
        slot.register_forward_pre_hook(note, with_kwargs=True)
    for options in ({}, FIXED):
        _generate(model, _longer(llama.inputs), prefill_chunk_size=4, max_new_tokens=2, **options)
        assert widths
        assert max(widths) == 4
        widths.clear()


def test_a_release_that_mixes_up_attentions_of_several_kinds_is_refused_whoever_makes_the_cache(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_state, "KEEPS_ATTENTIONS_APART", False)
    llama.model.config.sliding_window = 64
    llama.model.config.layer_types = ["sliding_attention", "full_attention"] * 2
    hybrid = llama.convert(llama.hybrid)
    for make in (lambda: linearize.static_cache(hybrid, 2, 40), lambda: _generate(hybrid, llama.inputs, **FIXED)):
        with pytest.raises(
            ValueError, match=r"in several ways \(full_attention, sliding_attention\); under transformers"
        ):
            make()
    hybrid.config.layer_types = ["full_attention"] * 4
    linearize.static_cache(hybrid, 2, 40)


def test_a_release_that_mixes_up_attentions_serves_students_that_keep_none(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_state, "KEEPS_ATTENTIONS_APART", False)
    llama.model.config.sliding_window = 64
    llama.model.config.layer_types = ["sliding_attention", "full_attention"] * 2
    linearize.static_cache(llama.convert(), 2, 40)


def test_sizes_that_no_cache_can_have_are_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="no linear site"):
        linearize.static_cache(llama.model, 1, 8)
    model = _student(llama, "all", "mamba2")
    with pytest.raises(ValueError, match="batch_size = 0 and max_length = 8"):
        linearize.static_cache(model, 0, 8)
    with pytest.raises(RuntimeError, match="serves one batch size"):
        _generate(model, llama.inputs, cache=linearize.static_cache(model, 3, 40))
    cache = linearize.static_cache(model, 2, 40)
    for change in (lambda: cache.batch_repeat_interleave(2), lambda: cache.batch_select_indices(torch.tensor([0]))):
        with pytest.raises(RuntimeError, match="number of rows of a cache of fixed size"):
            change()


@torch.no_grad()
@pytest.mark.parametrize(
    ("layout", "options", "is_fixed"),
    [
        ("all", {}, True),
        ("all", {"num_beams": 2}, False),
        ("all", {"disable_compile": True}, False),
        ("all", {"cache_implementation": "dynamic"}, False),
        ("hybrid", {}, False),
    ],
)
def test_the_switch_fixes_the_size_where_nobody_asks_otherwise(
    llama: Any, layout: str, options: dict[str, Any], is_fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hybrid is left alone: its kept attention would read all of a cache that is made for the longest answer."""
    model = _student(llama, layout)
    monkeypatch.setattr(generation, "ACCELERATORS", ("cpu",))
    for on in (False, True):
        monkeypatch.setattr(generation.StatefulGeneration, "static_on_accelerators", on)
        output: Any = _generate(model, llama.inputs, return_dict_in_generate=True, **options)
        assert isinstance(output.past_key_values, StaticCache) == (on and is_fixed)


def test_a_step_needs_no_check_of_what_it_was_compiled_for_once_it_has_run(llama: Any, graphs: Graphs) -> None:
    """torch refuses what it would have to compile for: hooks in frames of their own, which it looks up step by step."""
    model = _student(llama, "all", "mamba2")
    expected = _generate(model, llama.inputs)
    assert torch.equal(_generate(model, llama.inputs, **FIXED, **_compiled(graphs)), expected)
    with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
        assert torch.equal(_generate(model, llama.inputs, **FIXED, **_compiled(graphs)), expected)
    assert graphs.number == 1
