"""The slot that holds both mixers: what the teacher route gives, what it shows, and what stays untouched."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from linearize.student.convert import (
    convert,
    converted_sites,
    linearized_sites,
    observe,
    release_teacher,
    set_linear,
    teacher_route,
)
from linearize.student.site import SiteCapture


@torch.no_grad()
def test_teacher_route_is_equal_to_the_unconverted_model_bit_by_bit(teacher: Any) -> None:
    right_padded = torch.ones_like(teacher.inputs["attention_mask"])
    right_padded[1, 9:] = 0
    masks = [teacher.inputs["attention_mask"], right_padded, None]
    before = [teacher.model(**teacher.inputs | {"attention_mask": mask}).logits for mask in masks]
    model = teacher.convert()
    for mask, expected in zip(masks, before, strict=True):
        inputs = teacher.inputs | {"attention_mask": mask}
        assert not torch.equal(model(**inputs).logits, expected)
        with teacher_route(model):
            assert torch.equal(model(**inputs).logits, expected)
        with observe(model, lambda capture, mixer: None, [0, 2]):
            assert torch.equal(model(**inputs).logits, expected)
        assert not torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_a_student_whose_sites_all_keep_attention_is_the_teacher(teacher: Any) -> None:
    expected = teacher.model(**teacher.inputs).logits
    assert torch.equal(teacher.convert(linear=[])(**teacher.inputs).logits, expected)


class CallsItsInputOtherwise(torch.nn.Module):
    """Around an attention; its layer passes the input first."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention, self.o_proj = attention, attention.o_proj

    def forward(self, x: torch.Tensor, **kwargs: Any) -> Any:
        return self.attention(hidden_states=x, **kwargs)


@torch.no_grad()
def test_an_attention_may_get_its_input_first_whatever_it_calls_it(llama: Any) -> None:
    for layer in llama.model.model.layers:
        layer.self_attn = CallsItsInputOtherwise(layer.self_attn)

        def pass_first(attention: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return (kwargs.pop("hidden_states"), *args), kwargs

        # The slot takes the module's place and its layer's call: the hook stands for a layer that is written so.
        layer.self_attn.register_forward_pre_hook(pass_first, with_kwargs=True)
    expected = llama.model(**llama.inputs).logits
    for layer in llama.model.model.layers:
        layer.self_attn._forward_pre_hooks.clear()
    model = llama.convert()
    for slot in linearized_sites(model):
        slot.register_forward_pre_hook(pass_first, with_kwargs=True)
    assert not torch.equal(model(**llama.inputs).logits, expected)
    with teacher_route(model):
        assert torch.equal(model(**llama.inputs).logits, expected)
    with observe(model, lambda capture, mixer: None, [0, 2]):
        assert torch.equal(model(**llama.inputs).logits, expected)


@torch.no_grad()
def test_teacher_route_generates_what_the_unconverted_model_generates(llama: Any) -> None:
    expected = llama.model.generate(**llama.inputs, max_new_tokens=8, do_sample=False)
    model = llama.convert()
    with teacher_route(model):
        assert torch.equal(model.generate(**llama.inputs, max_new_tokens=8, do_sample=False), expected)


@torch.no_grad()
def test_captures_hold_the_output_per_head_before_the_projection(teacher: Any) -> None:
    model = teacher.convert()
    captures: list[SiteCapture] = []
    outputs: list[torch.Tensor] = []
    for slot in linearized_sites(model):
        slot.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with observe(model, lambda capture, mixer: captures.append(capture), [site.index for site in teacher.sites]):
        model(**teacher.inputs)
    assert [capture.site for capture in captures] == teacher.sites
    for capture, slot, output_BTD in zip(captures, linearized_sites(model), outputs, strict=True):
        site = slot.site
        assert capture.target_BTNV.shape == (*capture.x_BTD.shape[:2], site.num_heads, site.value_dim)
        assert torch.equal(slot.o_proj(capture.target_BTNV.flatten(-2)), output_BTD)
        assert capture.position is not None
        assert capture.position[0].shape[-1] == site.key_dim


@torch.no_grad()
@pytest.mark.parametrize("flipped", [False, True])
def test_captures_say_which_tokens_are_real(llama: Any, flipped: bool) -> None:
    model = llama.convert()
    mask = llama.inputs["attention_mask"]
    mask = mask.flip(1) if flipped else mask
    captures: list[SiteCapture] = []
    with observe(model, lambda capture, mixer: captures.append(capture), [1]):
        model(llama.inputs["input_ids"], attention_mask=mask)
        model(llama.inputs["input_ids"])
    assert captures[0].valid_BT is not None
    assert torch.equal(captures[0].valid_BT, mask.bool())
    assert captures[1].valid_BT is None


def test_captures_carry_no_gradient_and_the_observer_gets_the_sites_mixer(llama: Any) -> None:
    model = llama.convert()
    seen = []
    with observe(model, lambda capture, mixer: seen.append((capture, mixer)), [2]):
        model(**llama.inputs)
    ((capture, mixer),) = seen
    assert mixer is linearized_sites(model)[2].mixer
    assert not capture.x_BTD.requires_grad
    assert not capture.target_BTNV.requires_grad


def test_routes_and_observers_are_put_back_when_an_observer_raises(llama: Any) -> None:
    model = llama.convert()

    def fail(capture: SiteCapture, mixer: torch.nn.Module) -> None:
        raise ArithmeticError("as asked")

    with pytest.raises(ArithmeticError), observe(model, fail, [1]):
        model(**llama.inputs)
    assert all(not slot.runs_teacher and slot.observer is None for slot in linearized_sites(model))
    assert not any(slot.o_proj._forward_pre_hooks for slot in linearized_sites(model))


def test_training_the_mixers_leaves_every_tensor_of_the_teacher_as_it_was(llama: Any) -> None:
    before = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    model = llama.convert()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mixers = [parameter for slot in linearized_sites(model) for parameter in slot.mixer.parameters()]
    assert {id(p) for p in trained} == {id(p) for p in mixers}
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model(**llama.inputs, labels=llama.inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in trained)
    optimizer.step()
    after = model.state_dict()
    for name, tensor in before.items():
        inside = name.replace("self_attn.", "self_attn.attention.")
        assert torch.equal(after[inside if inside in after else name], tensor), name


def test_released_students_have_the_teachers_names_at_kept_sites_and_mixers_at_linear_ones(llama: Any) -> None:
    names = set(llama.model.state_dict())
    model = llama.convert(linear=llama.hybrid)
    with torch.no_grad():
        expected = model(**llama.inputs).logits
    release_teacher(model)
    here = set(model.state_dict())
    assert {name for name in here if ".layers.0." in name} == {name for name in names if ".layers.0." in name}
    assert {name.split("self_attn.")[1].split(".")[0] for name in here if ".layers.1.self_attn." in name} == {
        "mixer", "o_proj",
    }  # fmt: skip
    assert [slot.site.index for slot in linearized_sites(model)] == llama.hybrid
    assert [site.index for site in converted_sites(model)] == [0, 1, 2, 3]
    with torch.no_grad():
        assert torch.equal(model(**llama.inputs).logits, expected)


def test_a_released_teacher_is_missed_in_clear_words(llama: Any) -> None:
    model = llama.convert(linear=llama.hybrid)
    release_teacher(model)
    with pytest.raises(RuntimeError, match="attention of sites 1, 3, which was released"), teacher_route(model):
        pass
    with pytest.raises(ValueError, match=r"sites \[1\] were to keep attention"):
        set_linear(model, [3])
    with pytest.raises(ValueError, match="mixers exist at sites 1, 3"):
        set_linear(model, [0, 1, 3])


def test_convert_refuses_what_does_not_fit_and_changes_nothing(llama: Any) -> None:
    model, sites = llama.model, llama.sites
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=r"mixers for sites \[9\], but the model has 4 sites 0, 1, 2, 3"):
        convert(model, sites, {9: torch.nn.Identity()})
    with pytest.raises(ValueError, match="LlamaForCausalLM does not have it"):
        convert(model, [*sites, type(sites[0])(**{**_fields(sites[0]), "path": "model.layers.7.self_attn"})], {})
    with pytest.raises(ValueError, match="projection 'wo'"):
        convert(model, [type(sites[0])(**{**_fields(sites[0]), "output_projection": "wo"})], {})
    assert [name for name, _ in model.named_modules()] == before
    llama.convert()
    with pytest.raises(ValueError, match="converted already"):
        convert(model, sites, {})


def test_sites_without_a_mixer_cannot_become_linear_or_be_observed(llama: Any) -> None:
    convert(llama.model, llama.sites, {})
    with pytest.raises(ValueError, match="mixers exist at sites none"):
        set_linear(llama.model, [0])
    with (
        pytest.raises(ValueError, match="mixers exist at sites none"),
        observe(llama.model, lambda capture, mixer: None, [0]),
    ):
        pass


def test_an_unconverted_model_has_no_sites(llama: Any) -> None:
    assert linearized_sites(llama.model) == []
    with pytest.raises(ValueError, match="not a student"):
        converted_sites(llama.model)


def _fields(site: Any) -> dict[str, Any]:
    return {name: getattr(site, name) for name in type(site).__dataclass_fields__}


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_converted_model_can_be_copied_and_pickled(llama: Any, copied: Any) -> None:
    model = llama.convert(llama.hybrid)
    other = copied(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert type(other) is type(model)
    assert other(**llama.inputs).logits.abs().max() > 0
