"""Every family of the table, with images where it takes them, as a student: trained a step, decoded, saved, loaded."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.prefix import PREFIX_MODELS
from linearize_transformers.support import TURN_END, Family
from PIL import Image
from torch import nn
from transformers import GenerationConfig

from linearize.distill.logits import final_hidden
from linearize.distill.objectives import LayerMse, LogitKl
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, SeederSpec
from linearize.protocols.conversation import Conversation, Turn
from linearize.student.convert import convert, linearized_sites, observe, set_linear, teacher_route
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student, save_student
from linearize.student.site import SiteCapture
from linearize.testing.numbers import ROUNDING

pytestmark = pytest.mark.slow

CHANGE_LOGITS = {"gemma2", "cohere", "cohere2", "granite", "chameleon"}
"""Families whose forward does something behind the output projection in every release of transformers."""
SOMETIMES = {"paligemma"}
"""Those of which this depends on the release."""
LAYOUTS = ("all", "every second")
DECODING = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.2},
    "beams": {"do_sample": False, "num_beams": 3},
}


def conversations(*, takes_images: bool) -> list[Conversation]:
    """Two of unequal length; for a model that takes images, one image in the first and none in the second."""
    images = (Image.new("RGB", (40, 28), (200, 30, 30)),) if takes_images else ()
    mark = "<image>\n" if images else ""
    first = (Turn(f"{mark}how many red?", "two green"), Turn("and blue?", "one"))
    return [Conversation(first, images, id="first"), Conversation((Turn("the square is", "left of the circle"),))]


@dataclass
class Student:
    """A converted teacher and what it is asked."""

    model: Any
    linear: list[int]
    conversations: list[Conversation]


def make_student(adapter: TransformersAdapter, layout: str, mixer_name: str = "mamba2", **options: Any) -> Student:
    """The teacher with mixers seeded from its weights by the registered components."""
    registry = Plugins.discover().registry
    mixer_spec, seeder_spec = registry.get(MixerSpec, mixer_name), registry.get(SeederSpec, "mimic")
    seeder = seeder_spec.builder()(seeder_spec.config_class()())
    model, sites = adapter.load(dtype=torch.float32, device="cpu"), adapter.sites()
    asked = conversations(takes_images=adapter.takes_images)
    mixers = {}
    for site in sites:
        mixer: Any = build_mixer(mixer_spec, mixer_spec.config_class().model_validate(options), site)
        generator = torch.Generator().manual_seed(site.index)
        seeder.seed(adapter.weights(model, site), mixer, site=site, generator=generator)
        mixers[site.index] = mixer
    convert(model, sites, mixers)
    linear = [site.index for site in sites if layout == "all" or site.index % 2]
    set_linear(model, linear)
    return Student(model, linear, asked)


@pytest.fixture(scope="module", params=LAYOUTS)
def student(request: pytest.FixtureRequest, adapter: TransformersAdapter) -> Student:
    return make_student(adapter, request.param)


@pytest.mark.parametrize("objective", [LayerMse(LayerMseConfig()), LogitKl(LogitKlConfig())], ids=["mse", "kl"])
def test_a_step_gives_gradients_to_every_linear_mixer_and_to_nothing_else(
    student: Student, adapter: TransformersAdapter, objective: Any
) -> None:
    student.model.zero_grad()
    batch = adapter.batch(student.conversations)
    measured = objective.backward(student.model, batch, student.linear, objective.weight(batch))
    assert torch.isfinite(torch.as_tensor(measured.loss))
    assert float(measured.loss) > 0
    mixers = {slot.site: slot.mixer for slot in linearized_sites(student.model) if slot.site.index in student.linear}
    trained = {
        f"{site.path}.mixer.{name}"
        for site, mixer in mixers.items()
        if mixer is not None
        for name, _ in mixer.named_parameters()
    }
    gradients = {name: one.grad for name, one in student.model.named_parameters() if one.grad is not None}
    assert gradients.keys() == trained
    for name, gradient in gradients.items():
        assert bool(torch.isfinite(gradient).all()), name
        assert "q_proj" not in name or float(gradient.abs().max()) > 0, name


@torch.no_grad()
def test_the_objective_of_logits_sees_those_of_the_models_own_forward(
    student: Student, adapter: TransformersAdapter, family: Family
) -> None:
    """Soft caps, factors and masks behind the head included; on both routes."""
    batch = adapter.batch(student.conversations)
    model, head = student.model, student.model.get_output_embeddings()
    for route in (nullcontext(), teacher_route(model)):
        with route:
            expected_BTV = model(**batch.inputs, use_cache=False).logits
            final = final_hidden(model, batch)
            logits_PV = final.to_logits(final.x_BTD.flatten(0, 1))
        # The head's product of all rows at once is summed in another order.
        torch.testing.assert_close(logits_PV, expected_BTV.flatten(0, 1), rtol=1e-4, atol=1e-5)
        bare_PV = head(final.x_BTD.flatten(0, 1))
        is_bare = torch.allclose(bare_PV, logits_PV, rtol=1e-4, atol=1e-5)
        if family.model_type not in SOMETIMES:
            assert is_bare != (family.model_type in CHANGE_LOGITS), "CHANGE_LOGITS lists who does so behind the head"


@pytest.mark.parametrize("family", sorted(CHANGE_LOGITS), indirect=True)
@pytest.mark.parametrize("student", ["all"], indirect=True)
def test_logit_kl_and_its_gradients_are_those_of_the_models_own_logits(
    student: Student, adapter: TransformersAdapter
) -> None:
    """Not of the bare head's, a few positions at a time, against whole logits and one backward."""
    model, batch = student.model, adapter.batch(student.conversations)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    predicting_BT = batch.loss_mask_BT.roll(-1, 1)  # no row's first token is an answer's
    with torch.no_grad(), teacher_route(model):
        teacher_PV = model(**batch.inputs, use_cache=False).logits[predicting_BT]
    student_PV = model(**batch.inputs, use_cache=False).logits[predicting_BT]
    expected = torch.nn.functional.kl_div(
        student_PV.log_softmax(-1), teacher_PV.log_softmax(-1), reduction="batchmean", log_target=True
    )
    gradients = torch.autograd.grad(expected, list(trained.values()))
    model.zero_grad()
    objective = LogitKl(LogitKlConfig(tokens="answers", chunk_tokens=3))
    measured = objective.backward(model, batch, student.linear, objective.weight(batch))
    # fp32 sums in another order.
    torch.testing.assert_close(torch.as_tensor(measured.loss), expected.detach(), rtol=1e-3, atol=1e-7)
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3 * scale, msg=name)


def generate(model: Any, inputs: dict[str, Any], forbidden: Collection[int], **options: Any) -> torch.Tensor:
    torch.manual_seed(4)
    config = GenerationConfig(
        max_new_tokens=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        suppress_tokens=sorted(forbidden),
        **options,
    )
    ids: torch.Tensor = model.generate(**inputs, generation_config=config)
    return ids[:, inputs["input_ids"].shape[1] :]


def test_left_padded_batches_decode_with_a_cache_as_without(
    student: Student, adapter: TransformersAdapter, family: Family
) -> None:
    batch = adapter.batch(student.conversations, for_generation=True)
    assert int((batch.inputs["attention_mask"] == 0).sum()) > 5
    # The image tokens of a model mean an image, which a decoding step does not bring; nor is an answer cut short here.
    forbidden = range(TURN_END + 1 + len(family.tokens))
    words: set[int] = set()
    for name, options in DECODING.items():
        if name == "beams" and not family.beams_take_images:
            batch = adapter.batch([one for one in student.conversations if not one.images], for_generation=True)
        cached = generate(student.model, batch.inputs, forbidden, **options)
        whole = generate(student.model, batch.inputs, forbidden, use_cache=False, **options)
        assert torch.equal(cached, whole), options
        words |= set(cached.flatten().tolist())
    assert len(words) > 4


@torch.no_grad()
@pytest.mark.parametrize("student", ["all"], indirect=True)
def test_a_saved_student_loads_with_equal_logits(
    student: Student, adapter: TransformersAdapter, family: Family, tmp_path: Path
) -> None:
    batch = adapter.batch(student.conversations)
    save_student(student.model, tmp_path / "student")
    loaded = load_student(tmp_path / "student")
    trained = {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}
    for name, parameter in loaded.named_parameters():  # torch rounds some products otherwise when one needs gradients
        parameter.requires_grad_(name in trained)
    assert loaded.config.model_type == f"linearize_{family.model_type}"
    torch.testing.assert_close(loaded(**batch.inputs).logits, student.model(**batch.inputs).logits, **ROUNDING)


@pytest.mark.parametrize("family", ["smollm3", "cohere2", "llama"], indirect=True)
@pytest.mark.parametrize("student", ["all"], indirect=True)
def test_mixers_get_the_position_where_the_attention_turns_by_it(
    student: Student, adapter: TransformersAdapter, family: Family
) -> None:
    turned: dict[int, bool] = {}

    def note(capture: SiteCapture, _: nn.Module) -> None:
        turned[capture.site.index] = capture.position is not None

    with observe(student.model, note, student.linear), torch.no_grad():
        student.model(**adapter.batch(student.conversations).inputs)
    without = {"smollm3": [1, 3], "cohere2": [1], "llama": []}[family.model_type]
    assert [index for index, has_position in turned.items() if not has_position] == without


@torch.no_grad()
def test_a_window_wider_than_the_text_is_the_teacher(adapter: TransformersAdapter) -> None:
    """A seeded mixer that keeps all of the attention, against the model itself, on text."""
    if adapter.config.model_type in PREFIX_MODELS or any("sigmoid gate" in one for one in adapter.caveats()):
        pytest.skip("its caveats say that it does with text what no mixer does")
    student = make_student(adapter, "all", "sliding_window", window=512)
    batch = adapter.batch(conversations(takes_images=False))
    valid_BT = batch.inputs["attention_mask"].bool()
    found, wanted = (
        student.model(**batch.inputs).logits,
        adapter.load(dtype=torch.float32, device="cpu")(**batch.inputs),
    )
    # fp32 sums of the same products in another order.
    limit = 1e-5 * float(wanted.logits[valid_BT].abs().max())
    torch.testing.assert_close(found[valid_BT], wanted.logits[valid_BT], atol=limit, rtol=0)


@pytest.mark.parametrize("family", ["cohere", "llama"], indirect=True)
def test_q_and_k_are_turned_as_the_teacher_turns_them(adapter: TransformersAdapter) -> None:
    """Neighbours in Cohere, halves in Llama: what sees all through its window is the teacher."""
    inner = {"type": "feature_map", "conv_width": 0}
    wide, narrow = (
        make_student(adapter, "all", "swa_linear", combine="joint", window=window, linear=inner) for window in (64, 4)
    )
    batch = adapter.batch(wide.conversations)
    valid_BT = batch.inputs["attention_mask"].bool()
    teacher = adapter.load(dtype=torch.float32, device="cpu")
    with torch.no_grad():
        wanted, found, other = (model(**batch.inputs).logits for model in (teacher, wide.model, narrow.model))
    # fp32 sums of the same products in another order.
    torch.testing.assert_close(found[valid_BT], wanted[valid_BT], atol=1e-4, rtol=1e-4)
    assert other[valid_BT].isfinite().all()
    assert not torch.allclose(other[valid_BT], wanted[valid_BT], atol=1e-2)
