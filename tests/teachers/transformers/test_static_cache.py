"""Students of the families decode with a cache of fixed size as with a growing one, images and pads included."""

from __future__ import annotations

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.support import TURN_END, Family
from test_families import generate, make_student

from linearize.protocols import Batch
from linearize.student.generation import GOES_ON_IN_PIECES
from linearize.student.static_state import KEEPS_ATTENTIONS_APART, is_all_linear
from linearize.testing.graphs import Graphs, compiled_by


@pytest.mark.parametrize("layout", ["all", "every second"])
def test_a_cache_of_fixed_size_gives_the_same_tokens(adapter: TransformersAdapter, family: Family, layout: str) -> None:
    student = make_student(adapter, layout)
    batch = adapter.batch(student.conversations, for_generation=True)
    forbidden = range(TURN_END + 1 + len(family.tokens))
    if not is_all_linear(student.model) and not _teacher_can(adapter, batch, forbidden):
        pytest.skip("the teacher itself cannot decode with a cache of fixed size under this release of transformers")
    types = set(getattr(student.model.config.get_text_config(decoder=True), "layer_types", None) or ())
    if not (KEEPS_ATTENTIONS_APART or is_all_linear(student.model) or len(types) < 2):
        with pytest.raises(ValueError, match="whose layers attend in several ways"):
            generate(student.model, batch.inputs, forbidden, cache_implementation="static", do_sample=False)
        return
    for options in ({"do_sample": False}, {"do_sample": True, "temperature": 1.2}):
        growing = generate(student.model, batch.inputs, forbidden, **options)
        fixed = generate(student.model, batch.inputs, forbidden, cache_implementation="static", **options)
        assert torch.equal(fixed, growing)


def _teacher_can(adapter: TransformersAdapter, batch: Batch, forbidden: range) -> bool:
    """Whether the teacher's own attention gives the same tokens with a cache of fixed size."""
    teacher = adapter.load(dtype=torch.float32, device="cpu")
    growing = generate(teacher, batch.inputs, forbidden, do_sample=False)
    try:
        fixed = generate(teacher, batch.inputs, forbidden, do_sample=False, cache_implementation="static")
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return torch.equal(fixed, growing)


@pytest.mark.parametrize("family", ["smolvlm", "llava", "qwen2_5_vl", "qwen3_vl", "glm4v", "gemma3"], indirect=True)
@pytest.mark.parametrize("layout", ["all", "every second"])
def test_a_prompt_with_images_is_read_in_pieces(adapter: TransformersAdapter, family: Family, layout: str) -> None:
    student = make_student(adapter, layout)
    batch = adapter.batch(student.conversations, for_generation=True)
    forbidden = range(TURN_END + 1 + len(family.tokens))
    whole = generate(student.model, batch.inputs, forbidden, do_sample=False)
    if not GOES_ON_IN_PIECES:
        with pytest.raises(ValueError, match="would read the prompt from its first token again"):
            generate(student.model, batch.inputs, forbidden, do_sample=False, prefill_chunk_size=4)
        return
    for options in ({}, {"cache_implementation": "static"}):
        pieces = generate(student.model, batch.inputs, forbidden, do_sample=False, prefill_chunk_size=4, **options)
        assert torch.equal(pieces, whole)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl", "qwen3_vl", "glm4v"], indirect=True)
@pytest.mark.parametrize("layout", ["all", "every second"])
def test_a_step_is_one_graph_for_answer_after_answer(adapter: TransformersAdapter, family: Family, layout: str) -> None:
    """Positions with axes included, of which transformers must not make anew what a graph would depend on."""
    torch._dynamo.reset()
    graphs = Graphs()
    student = make_student(adapter, layout)
    batch = adapter.batch(student.conversations, for_generation=True)
    forbidden = range(TURN_END + 1 + len(family.tokens))
    growing = generate(student.model, batch.inputs, forbidden, do_sample=False)
    for _ in range(2):
        options = {"cache_implementation": "static", "compile_config": compiled_by(graphs)}
        assert torch.equal(generate(student.model, batch.inputs, forbidden, do_sample=False, **options), growing)
    assert graphs.number == 1
    torch._dynamo.reset()
