"""A second turn that goes on from the first one's cache is the same as one that reads everything anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from linearize.student.state import CACHE_NAME

LAYOUTS = ("all", "hybrid")
PAD = 0


def _student(teacher: Any, layout: str) -> Any:
    return teacher.convert(None if layout == "all" else teacher.hybrid)


def _generate(model: Any, inputs: dict[str, Any], end: int, **options: Any) -> Any:
    config = GenerationConfig(
        max_new_tokens=8, do_sample=False, pad_token_id=PAD, bos_token_id=1, eos_token_id=end, suppress_tokens=[60],
        return_dict_in_generate=True,
    )  # fmt: skip
    return model.generate(**inputs, generation_config=config, **options)


def _first_turn(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[Any, Tensor]:
    """What was generated until row 1 ended some tokens before row 0, and the mask of all that is no pad."""
    ids = _generate(model, inputs, end=-1).sequences
    prompt = inputs["input_ids"].shape[1]
    answers = ids[:, prompt:]
    end = next(int(token) for token in answers[1, 1:4] if token not in answers[0])
    output = _generate(model, inputs, end, **options)
    answers = output.sequences[:, prompt:]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answers)], 1)
    ended = (answers[1] == end).nonzero()[0].item()
    assert ended < answers.shape[1] - 2, "row 1 was to end well before row 0"
    mask[1, prompt + ended + 1 :] = 0
    return output, mask


def _second(output: Any, mask: Tensor) -> dict[str, Tensor]:
    """The first turn and five more tokens of a question."""
    more = torch.randint(2, 60, (2, 5), generator=torch.Generator().manual_seed(7))
    return {
        "input_ids": torch.cat([output.sequences, more], 1),
        "attention_mask": torch.cat([mask, torch.ones_like(more)], 1),
    }


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed size"])
def test_a_row_that_ended_early_goes_on_as_if_it_had_been_alone(teacher: Any, layout: str, fixed: bool) -> None:
    if fixed and getattr(teacher.model.config, "needs_extra_slots", False):
        pytest.skip("this family refuses caches of fixed size")
    model = _student(teacher, layout)
    options = {"cache_implementation": "static", "max_cache_len": 48} if fixed else {}
    output, mask = _first_turn(model, teacher.inputs, **options)
    question = _second(output, mask)
    images = {name: value for name, value in teacher.inputs.items() if name == "pixel_values"}
    whole = _generate(model, question | images, end=-1, output_logits=True)
    after = _generate(model, question, end=-1, output_logits=True, **{CACHE_NAME: output[CACHE_NAME]})
    assert torch.equal(after.sequences, whole.sequences)
    for mine, expected in zip(after.logits, whole.logits, strict=True):
        # fp32: the same sums in another order.
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_that_takes_the_padding_of_an_ended_row_for_words_is_refused(llama: Any, layout: str) -> None:
    model = _student(llama, layout)
    output, mask = _first_turn(model, llama.inputs)
    question = _second(output, mask)
    wrong = question["attention_mask"].clone()
    wrong[1] = 1
    message = r"\(row 1: \d+ by the mask, \d+ in the state\)"
    with pytest.raises(ValueError, match=message):
        _generate(model, question | {"attention_mask": wrong}, end=-1, **{CACHE_NAME: output[CACHE_NAME]})
    with pytest.raises(ValueError, match=message):
        model(question["input_ids"][:, -5:], attention_mask=wrong, **{CACHE_NAME: output[CACHE_NAME]})


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_turn_without_a_mask_after_padding_is_refused(llama: Any, layout: str) -> None:
    model, cache = _student(llama, layout), DynamicCache()
    model(**llama.inputs, **{CACHE_NAME: cache})
    with pytest.raises(ValueError, match=r"row 0: 11 by the mask, 7 in the state"):
        model(llama.inputs["input_ids"], **{CACHE_NAME: cache})


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", [6, 10], ids=["a pad among others", "a pad alone"])
def test_a_pad_in_the_second_piece_of_a_prompt_is_passed_over(llama: Any, layout: str, first: int) -> None:
    """Row 1 has its pads behind, as a right-padded batch has, one of them as the only token of its piece."""
    model = _student(llama, layout)
    ids, mask = llama.inputs["input_ids"], torch.ones_like(llama.inputs["attention_mask"])
    mask[1, 9:] = 0
    positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), DynamicCache()
    for part in (slice(0, first), slice(first, 11)):
        inputs = {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part]}
        model(ids[:, part], **inputs, **{CACHE_NAME: cache})
    question = torch.tensor([[5, 6], [7, 8]])
    mask = torch.cat([mask, torch.ones_like(question)], 1)
    positions = (mask.cumsum(-1) - 1)[:, -2:]
    logits = model(question, attention_mask=mask, position_ids=positions, **{CACHE_NAME: cache}).logits
    for row, words in enumerate((ids[:1], ids[1:, :9])):
        alone = model(torch.cat([words, question[row : row + 1]], 1)).logits[:, -2:]
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_row_of_one_is_given_no_mask_that_it_does_not_need(llama: Any) -> None:
    """Nothing pads a batch of one, and a mask costs time."""
    model, masks = llama.convert(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    inputs = {name: value[1:] for name, value in llama.inputs.items()}
    with_mask = _generate(model, inputs, end=3).sequences
    assert len(with_mask) == 1
    assert len(masks) > 3
    unmasked = [mask is None for mask in masks]
    masks.clear()
    llama.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert unmasked[:3] == [mask is None for mask in masks]
