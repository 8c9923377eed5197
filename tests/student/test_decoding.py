"""Decoding with the state in the cache is decoding without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from linearize.student.convert import teacher_route
from linearize.student.state import CACHE_NAME

LAYOUTS = ("all", "hybrid")


def _student(teacher: Any, layout: str) -> Any:
    return teacher.convert(None if layout == "all" else teacher.hybrid)


def _generate(model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    torch.manual_seed(4)
    # Token 60 stands for an image, which a decoding step does not bring.
    config = GenerationConfig(max_new_tokens=10, pad_token_id=0, bos_token_id=1, suppress_tokens=[60], **options)
    ids: torch.Tensor = model.generate(**inputs, generation_config=config)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.3},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampling", "beams", "several"],
)
def test_left_padded_batches_decode_as_without_a_cache(teacher: Any, layout: str, options: dict[str, Any]) -> None:
    model = _student(teacher, layout)
    cached = _generate(model, teacher.inputs, **options)
    assert torch.equal(cached, _generate(model, teacher.inputs, use_cache=False, **options))
    assert len(cached[:, teacher.inputs["input_ids"].shape[1] :].unique()) > 4


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_padded_row_decodes_as_it_does_alone(teacher: Any, layout: str) -> None:
    model = _student(teacher, layout)
    together = _generate(model, teacher.inputs, do_sample=False)
    pads = int((teacher.inputs["attention_mask"][0] == 0).sum())
    alone = {
        name: tensor[:1] if name == "pixel_values" else tensor[:1, pads:] for name, tensor in teacher.inputs.items()
    }
    assert torch.equal(together[:1, pads:], _generate(model, alone, do_sample=False))


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cuts", [(3, 11), (1, 2, 6, 11), (10, 11)])
def test_prefill_in_pieces_gives_the_logits_of_one_piece(llama: Any, layout: str, cuts: tuple[int, ...]) -> None:
    """The pads of row 0 are in the first pieces, also where a piece is a single pad."""
    model = _student(llama, layout)
    ids, mask = llama.inputs["input_ids"], llama.inputs["attention_mask"]
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    pieces, begin = [], 0
    for end in cuts:
        part = {"attention_mask": mask[:, :end], "position_ids": positions[:, begin:end], CACHE_NAME: cache}
        pieces.append(model(ids[:, begin:end], **part).logits)
        begin = end
    logits = torch.cat(pieces, dim=1)
    whole = model(ids, attention_mask=mask, position_ids=positions).logits
    # fp32: the same sums in another order.
    torch.testing.assert_close(logits[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 11


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_generate_prefills_in_chunks(llama: Any, layout: str) -> None:
    model = _student(llama, layout)
    whole = _generate(model, llama.inputs, do_sample=False)
    assert torch.equal(_generate(model, llama.inputs, do_sample=False, prefill_chunk_size=3), whole)


@torch.no_grad()
def test_a_reset_cache_starts_anew(llama: Any) -> None:
    model = llama.convert()
    cache = DynamicCache()
    first = model(**llama.inputs, **{CACHE_NAME: cache}).logits
    cache.reset()
    assert torch.equal(model(**llama.inputs, **{CACHE_NAME: cache}).logits, first)


@torch.no_grad()
def test_pads_do_not_change_what_the_real_tokens_say(llama: Any) -> None:
    model = llama.convert()
    ids = llama.inputs["input_ids"].clone()
    expected = model(ids, attention_mask=llama.inputs["attention_mask"]).logits[0, 4:]
    ids[0, :4] = 17
    assert torch.equal(model(ids, attention_mask=llama.inputs["attention_mask"]).logits[0, 4:], expected)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_kinds_of_prepared_masks_are_read(llama: Any, implementation: str) -> None:
    model = llama.convert(llama.hybrid)
    model.set_attn_implementation(implementation)
    cached = _generate(model, llama.inputs, do_sample=False)
    assert torch.equal(cached, _generate(model, llama.inputs, do_sample=False, use_cache=False))


@torch.no_grad()
def test_a_cache_cannot_go_on_in_the_other_route(llama: Any) -> None:
    model = llama.convert()
    cache = DynamicCache()
    model(**llama.inputs, **{CACHE_NAME: cache})
    with teacher_route(model), pytest.raises(RuntimeError, match="start from an empty cache"):
        model(**llama.inputs, **{CACHE_NAME: cache})


@torch.no_grad()
def test_decoding_that_steps_back_is_refused(llama: Any) -> None:
    repetitive = {"input_ids": torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])}
    # transformers 5.24 asks the cache after the prefill; before, the state itself refused when it was to be cropped.
    with pytest.raises((RuntimeError, ValueError), match=r"asks a recurrent state to forget|cache that can be cropped"):
        _generate(llama.convert(), repetitive, do_sample=False, prompt_lookup_num_tokens=2)


def test_training_with_gradient_checkpointing_gives_the_same_gradients(llama: Any) -> None:
    model = llama.convert(llama.hybrid).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            # The second name is the one before transformers 5.23.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.zero_grad()
        model(**llama.inputs, labels=llama.inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == 8
    for plain, checked in zip(*gradients, strict=True):
        assert torch.equal(plain, checked)
