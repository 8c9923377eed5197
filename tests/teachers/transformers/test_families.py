"""Every family of the table, with images where it takes them: converted, trained a step, decoded, saved, loaded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.support import TURN_END, Family
from PIL import Image
from transformers import GenerationConfig

from linearize.data.conversation import Conversation, Turn
from linearize.distill.objectives import LayerMse, LogitKl
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.plugins import Plugins
from linearize.specs import MixerSpec, SeederSpec
from linearize.student.convert import convert, linearized_sites, set_linear, teacher_route
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student, save_student

LAYOUTS = ("all", "every second")
DECODING = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.2},
    "beams": {"do_sample": False, "num_beams": 3},
}


def conversations(family: Family) -> list[Conversation]:
    """Two of unequal length; where the family takes images, one image in the first and none in the second."""
    images = (Image.new("RGB", (40, 28), (200, 30, 30)),) if family.image else ()
    mark = "<image>\n" if images else ""
    first = (Turn(f"{mark}how many red?", "two green"), Turn("and blue?", "one"))
    return [Conversation(first, images, id="first"), Conversation((Turn("the square is", "left of the circle"),))]


def make_student(adapter: TransformersAdapter, layout: str) -> Any:
    """The converted teacher with mixers seeded from its weights by the registered components."""
    registry = Plugins.discover().registry
    mixer_spec, seeder_spec = registry.get(MixerSpec, "mamba2"), registry.get(SeederSpec, "mimic")
    seeder = seeder_spec.builder()(seeder_spec.config_class()())
    model = adapter.load(dtype=torch.float32, device="cpu")
    mixers = {}
    for site in adapter.sites():
        mixer: Any = build_mixer(mixer_spec, mixer_spec.config_class()(), site)
        generator = torch.Generator().manual_seed(site.index)
        seeder.seed(adapter.weights(model, site), mixer, site=site, generator=generator)
        mixers[site.index] = mixer
    convert(model, adapter.sites(), mixers)
    set_linear(model, linear_sites(adapter, layout))
    return model


def linear_sites(adapter: TransformersAdapter, layout: str) -> list[int]:
    return [site.index for site in adapter.sites() if layout == "all" or site.index % 2]


@pytest.mark.filterwarnings("ignore:.*both directions")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_teacher_route_is_the_teacher_bit_by_bit(family: Family, adapter: TransformersAdapter, layout: str) -> None:
    batch = adapter.batch(conversations(family))
    with torch.no_grad():
        expected = adapter.load(dtype=torch.float32, device="cpu")(**batch.inputs).logits
        model = make_student(adapter, layout)
        with teacher_route(model):
            assert torch.equal(model(**batch.inputs).logits, expected)
        assert not torch.allclose(model(**batch.inputs).logits, expected, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*both directions")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("objective", [LayerMse(LayerMseConfig()), LogitKl(LogitKlConfig())], ids=["mse", "kl"])
def test_a_step_gives_gradients_to_every_linear_mixer_and_to_nothing_else(
    family: Family, adapter: TransformersAdapter, layout: str, objective: Any
) -> None:
    model = make_student(adapter, layout)
    batch = adapter.batch(conversations(family))
    linear = linear_sites(adapter, layout)
    measured = objective.backward(model, batch, linear, objective.weight(batch))
    assert torch.isfinite(torch.as_tensor(measured.loss))
    assert float(measured.loss) > 0
    trained = {
        f"{slot.site.path}.mixer.{name}"
        for slot in linearized_sites(model)
        if slot.site.index in linear
        for name, _ in slot.mixer.named_parameters()  # type: ignore[union-attr]
    }
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
    projections = [name for name in with_gradient if "q_proj" in name]
    assert all(float(model.get_parameter(name).grad.abs().max()) > 0 for name in projections)


def generate(model: Any, inputs: dict[str, Any], forbidden: Collection[int], **options: Any) -> torch.Tensor:
    torch.manual_seed(4)
    config = GenerationConfig(
        max_new_tokens=6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        suppress_tokens=sorted(forbidden),
        **options,
    )
    ids: torch.Tensor = model.generate(**inputs, generation_config=config)
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.filterwarnings("ignore:.*both directions")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_left_padded_batches_decode_with_a_cache_as_without(
    family: Family, adapter: TransformersAdapter, layout: str
) -> None:
    model = make_student(adapter, layout)
    batch = adapter.batch(conversations(family), for_generation=True)
    assert int((batch.inputs["attention_mask"] == 0).sum()) > 5
    # The image tokens of a model mean an image, which a decoding step does not bring; nor is an answer cut short here.
    forbidden = range(TURN_END + 1 + len(family.tokens))
    words: set[int] = set()
    for options in DECODING.values():
        cached = generate(model, batch.inputs, forbidden, **options)
        assert torch.equal(cached, generate(model, batch.inputs, forbidden, use_cache=False, **options)), options
        words |= set(cached.flatten().tolist())
    assert len(words) > 4


@pytest.mark.filterwarnings("ignore:.*both directions")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_student_loads_with_equal_logits(
    family: Family, adapter: TransformersAdapter, layout: str, tmp_path: Path
) -> None:
    model = make_student(adapter, layout)
    batch = adapter.batch(conversations(family))
    save_student(model, tmp_path / "student", adapter.processor())
    student = load_student(tmp_path / "student")
    assert student.config.model_type == f"linearize_{family.model_type}"
    with torch.no_grad():
        assert torch.equal(student(**batch.inputs).logits, model(**batch.inputs).logits)
