"""What every teacher adapter has to keep, as a class of tests to inherit from.

    from linearize.testing import TeacherConformance


    class TestMyTeacher(TeacherConformance):
        def make_adapter(self) -> MyAdapter:
            return MyAdapter(MyConfig(checkpoint=TINY))

runs every check below. The checkpoint should be tiny and random: some layers, each different from the others, weights
large enough that every one of them matters. Letters: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from linearize.data.conversation import IMAGE_MARK, Conversation, Turn
from linearize.distill.objectives import LogitKl
from linearize.distill.options import LogitKlConfig
from linearize.plugins import Plugins
from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, AttentionSite, Batch, TeacherAdapter
from linearize.specs import MixerSpec
from linearize.student.convert import convert, linearized_sites, set_linear, teacher_route
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student, save_student, student_state
from linearize.testing.attention import attend, first_angles
from linearize.testing.watching import attention_calls, record_sites

READERS = (
    "torch.load",
    "safetensors.safe_open",
    "safetensors.torch.load_file",
    "transformers.PreTrainedModel.from_pretrained",
)
"""How weights are read from files."""


class TeacherConformance:
    """Inherit from it and make the adapter.

    Attributes:
        takes_images: whether conversations may hold images.
        plain_rope: whether the rotary embedding is unscaled, so that its angles follow from ``rope_theta`` alone.
        questions, answers: words that the tiny teacher's tokenizer knows; the second of each longer than the first.
        mixer: the registered mixer that takes the attentions' places.
        tolerance: how far a site's own output may be from the same attention written out, relative to its largest
            value. float32 against float64: some 1e-6; bugs are ten thousand times larger.
        padding_tolerance: how far a row's logits in a padded batch may be from the row's alone; the same sums in
            another order.
    """

    takes_images: ClassVar[bool] = True
    plain_rope: ClassVar[bool] = True
    questions: ClassVar[tuple[str, str]] = ("how many are red?", "what is left of the blue square?")
    answers: ClassVar[tuple[str, str]] = ("two", "a circle")
    mixer: ClassVar[str] = "mamba2"
    tolerance: ClassVar[float] = 1e-4
    padding_tolerance: ClassVar[float] = 1e-3

    # What an author overrides.

    def make_adapter(self) -> TeacherAdapter:
        """A new adapter of a tiny teacher; nothing loaded yet."""
        raise NotImplementedError("make_adapter() of a TeacherConformance class returns the adapter to check")

    def text_conversations(self) -> list[Conversation]:
        """Conversations without images, of unequal length; the first has one turn."""
        first, second = self._turns()
        return [Conversation((first,), id="short"), Conversation((second, first), id="long")]

    def image_conversations(self) -> list[Conversation]:
        """Conversations with one and with two images; the first has one turn."""
        small, wide = _picture(40, 28, 1), _picture(64, 30, 2)
        first, second = (Turn(f"{IMAGE_MARK}\n{turn.question}", turn.answer) for turn in self._turns())
        return [
            Conversation((first,), (small,), id="one image"),
            Conversation((second, first), (wide, small), id="two images"),
        ]

    def _turns(self) -> tuple[Turn, Turn]:
        first, second = (Turn(*pair) for pair in zip(self.questions, self.answers, strict=True))
        return first, second

    @pytest.fixture
    def adapter(self) -> TeacherAdapter:
        """The adapter that the checks get."""
        return self.make_adapter()

    # The checks.

    def test_sites_are_numbered_in_order_and_fit_their_modules(self, adapter: TeacherAdapter) -> None:
        """Indices from 0, no place twice, and the sizes that the modules have."""
        sites, model = adapter.sites(), _load(adapter)
        assert sites, "a teacher without sites cannot be converted"
        assert [site.index for site in sites] == list(range(len(sites)))
        for values in ([site.path for site in sites], [site.cache_index for site in sites]):
            assert len(set(values)) == len(sites), values
        for site in sites:
            projection = model.get_submodule(f"{site.path}.{site.output_projection}")
            assert isinstance(projection, nn.Linear)
            assert (projection.out_features, projection.in_features) == (
                site.hidden_size,
                site.num_heads * site.value_dim,
            )
            assert site.num_heads % site.num_key_value_heads == 0

    def test_sites_are_known_without_reading_a_weight(self, adapter: TeacherAdapter) -> None:
        """A recipe is checked on machines that could never hold the model."""
        refusals = [mock.patch(name, side_effect=AssertionError(f"sites() reads weights: {name}")) for name in READERS]
        for refusal in refusals:
            refusal.start()
        try:
            sites = list(adapter.sites())
        finally:
            for refusal in refusals:
                refusal.stop()
        _load(adapter)
        assert list(adapter.sites()) == sites

    def test_sites_are_all_attentions_of_the_decoder_in_the_order_they_run(self, adapter: TeacherAdapter) -> None:
        """Counted where softmax attention is computed, whichever module does it."""
        model = _load(adapter)
        batch = adapter.batch(self.text_conversations()[:1])
        decoder = model.get_decoder()
        root = next(name for name, module in model.named_modules() if module is decoder)
        with attention_calls(model) as calls, torch.no_grad():
            model(**batch.inputs, use_cache=False)
        paths = [site.path for site in adapter.sites()]
        seen = [next((path for path in paths if _inside(call, path)), "") for call in calls]
        assert [path for path in seen if path] == paths, "each site computes attention once, in the order of the sites"
        missed = [call for call, path in zip(calls, seen, strict=True) if not path and _inside(call, root)]
        assert not missed, f"attention is computed in the decoder, but at no site: {missed}"

    def test_a_site_can_be_wrapped_without_a_change_of_one_bit(self, adapter: TeacherAdapter) -> None:
        """Nothing but its output may be wanted of an attention module."""
        model = _load_frozen(adapter)
        batch = self._full_batch(adapter)
        before = _logits(model, batch)
        convert(model, adapter.sites(), {})
        assert torch.equal(_logits(model, batch), before)

    def test_the_weights_of_a_site_reproduce_its_output(self, adapter: TeacherAdapter) -> None:
        """Projections, biases, norms, scale, rotary embedding, window and soft cap, by attention written out."""
        model = _load(adapter)
        batch = adapter.batch(self.text_conversations()[1:])
        calls = record_sites(model, adapter.sites(), batch)
        for site in adapter.sites():
            weights = adapter.weights(model, site)
            _check_shapes(weights, site)
            x_BTD, position, before_BTX, after_BTD = calls[site.index]
            expected_BTX = attend(weights, site, x_BTD, position)
            _assert_near(before_BTX, expected_BTX, self.tolerance, f"site {site.index} before its output projection")
            o_bias = None if weights.o_bias is None else weights.o_bias.double()
            _assert_near(
                after_BTD,
                F.linear(expected_BTX, weights.o.double(), o_bias),
                self.tolerance,
                f"site {site.index} after its output projection",
            )
            if self.plain_rope and weights.rope_theta is not None:
                assert position is not None, f"site {site.index} has rope_theta, but its decoder passes no angles"
                angles = first_angles(position, weights.rope_style)
                expected = torch.full_like(angles, weights.rope_theta ** (-2 / position[0].shape[-1]))
                torch.testing.assert_close(angles, expected, rtol=1e-3, atol=1e-5, msg=f"rope_theta of {site.path}")

    def test_conversion_leaves_the_teacher_route_as_it_was(self, adapter: TeacherAdapter) -> None:
        """With a mixer in every site, whichever of them run, the model still is the teacher, bit for bit."""
        model = _load_frozen(adapter)
        batch = self._full_batch(adapter)
        before = _logits(model, batch)
        self._convert(model, adapter.sites())
        for every in (1, 2):
            set_linear(model, [site.index for site in adapter.sites()[::every]])
            with teacher_route(model):
                assert torch.equal(_logits(model, batch), before)
        assert not torch.equal(_logits(model, batch), before), "the student route runs no mixer"

    def test_frozen_means_frozen(self, adapter: TeacherAdapter) -> None:
        """After conversion mixers alone can be trained, and a step's gradients reach all of them."""
        model = _load(adapter)
        self._convert(model, adapter.sites())
        mixers = {f"{slot.site.path}.mixer." for slot in linearized_sites(model)}
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all(any(name.startswith(mixer) for mixer in mixers) for name in trainable), sorted(trainable)[:5]
        batch = self._full_batch(adapter)
        objective = LogitKl(LogitKlConfig())
        sites = range(len(adapter.sites()))
        objective.backward(model, batch, sites, objective.weight(batch))
        gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert gradients == trainable

    def test_the_teacher_loads_as_asked_and_the_same_each_time(self, adapter: TeacherAdapter) -> None:
        """In eval mode, in the dtype that is asked for, knowing where an answer ends."""
        model = _load(adapter)
        assert not any(module.training for module in model.modules()), "load() returns the model in eval mode"
        batch = adapter.batch(self.text_conversations())
        assert torch.equal(_logits(model, batch), _logits(_load(adapter), batch))
        assert model.generation_config.eos_token_id is not None, "generation_config must name the end of an answer"
        lower = adapter.load(dtype=torch.bfloat16, device="cpu")
        assert next(lower.get_submodule(adapter.sites()[0].path).parameters()).dtype == torch.bfloat16

    def test_batches_of_text_say_what_each_token_is(self, adapter: TeacherAdapter) -> None:
        """Alone and together; pads, kinds, loss masks and numbers of tokens."""
        self._check_batches(adapter, self.text_conversations())

    def test_batches_with_images_say_what_each_token_is(self, adapter: TeacherAdapter) -> None:
        """The same with images in each row, in some rows, and several in one."""
        if not self.takes_images:
            pytest.skip("this teacher takes no images")
        self._check_batches(adapter, self.image_conversations())
        mixed = [*self.image_conversations(), *self.text_conversations()]
        self._check_batches(adapter, mixed)
        kinds = adapter.batch(mixed).token_kind_BT
        has_image = [bool((row == TOKEN_IMAGE).any()) for row in kinds]
        assert has_image == [bool(one.images) for one in mixed]

    def test_prompts_are_padded_on_the_left_and_begin_as_the_conversation_does(self, adapter: TeacherAdapter) -> None:
        """What is generated from is what was trained on, up to where the answer begins."""
        conversations = self._all_conversations()
        whole, prompts = adapter.batch(conversations), adapter.batch(conversations, for_generation=True)
        assert not prompts.loss_mask_BT.any(), "a prompt has no answer that a loss could cover"
        for row, conversation in enumerate(conversations):
            valid = prompts.inputs["attention_mask"][row].bool()
            length = int(valid.sum())
            assert bool(valid[len(valid) - length :].all()), "prompts are padded on the left"
            ids = _ids(whole, row)
            answers = whole.loss_mask_BT[row][whole.inputs["attention_mask"][row].bool()].tolist()
            last = max(place for place in range(len(ids)) if answers[place] and not (place and answers[place - 1]))
            assert _ids(prompts, row) == ids[:length], f"prompt of '{conversation.id}'"
            assert length == last, f"the prompt of '{conversation.id}' ends where its last answer begins"

    def test_an_answer_comes_back_as_text(self, adapter: TeacherAdapter) -> None:
        """Ids that the loss covers decode to the answer, without special tokens."""
        for conversation in (pair[0] for pair in (self.text_conversations(), self.image_conversations()) if pair):
            if conversation.images and not self.takes_images:
                continue
            batch = adapter.batch([conversation])
            ids_BT = batch.inputs["input_ids"][batch.loss_mask_BT][None]
            assert adapter.decode(ids_BT) == [conversation.turns[-1].answer]

    def test_the_processor_is_the_same_after_it_was_saved(self, adapter: TeacherAdapter, tmp_path: Path) -> None:
        """It is saved beside a student: the same prompts, the same tokens, the same pixels."""
        processor = adapter.processor()
        processor.save_pretrained(tmp_path)
        again = type(processor).from_pretrained(tmp_path)
        parts: Any = self.questions[0]
        options: dict[str, Any] = {}
        if self.takes_images:
            parts = [{"type": "image"}, {"type": "text", "text": parts}]
            options["images"] = [[_picture(40, 28, 1)]]
        message = [{"role": "user", "content": parts}]
        prompts = [one.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                   for one in (processor, again)]  # fmt: skip
        assert prompts[0] == prompts[1]
        first, second = (one(text=prompts[:1], return_tensors="pt", **options) for one in (processor, again))
        assert set(first) == set(second)
        for name in first:
            assert torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])), name

    def test_a_student_loses_no_tensor_when_it_is_saved(self, adapter: TeacherAdapter, tmp_path: Path) -> None:
        """Every second site linear: mixers and attentions are all there again, and the logits are equal."""
        model = _load(adapter)
        self._convert(model, adapter.sites(), every=2)
        batch = self._full_batch(adapter)
        save_student(model, tmp_path / "student", adapter.processor())
        student = load_student(tmp_path / "student").requires_grad_(False)
        assert student.state_dict().keys() == student_state(model).keys()
        assert torch.equal(_logits(student, batch), _logits(model, batch))

    def test_the_published_layout_loses_no_tensor(self, adapter: TeacherAdapter) -> None:
        """For adapters that offer one: there and back again."""
        if not hasattr(adapter, "to_published"):
            pytest.skip("this adapter has no published layout")
        published: Any = adapter
        model = _load(adapter)
        again = published.from_published(*published.to_published(model)).state_dict()
        assert again.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, again[name]), name
        _, state = published.to_published(model)
        for site in adapter.sites():
            prefix = published.published_attention_prefix(site)
            assert any(name.startswith(prefix) for name in state), f"no published tensor begins with {prefix}"

    # What the checks share.

    def _all_conversations(self) -> list[Conversation]:
        return [*self.text_conversations(), *(self.image_conversations() if self.takes_images else ())]

    def _full_batch(self, adapter: TeacherAdapter) -> Batch:
        return adapter.batch(self._all_conversations())

    def _convert(self, model: Any, sites: Sequence[AttentionSite], every: int = 1) -> None:
        """A mixer with its own start in every ``every``-th site."""
        spec = Plugins.discover().registry.get(MixerSpec, self.mixer)
        mixers: dict[int, nn.Module] = {}
        for site in sites[::every]:
            mixer: Any = build_mixer(spec, spec.config_class()(), site)
            mixer.initialize("scratch", torch.Generator().manual_seed(site.index))
            mixers[site.index] = mixer
        convert(model, sites, mixers)

    def _check_batches(self, adapter: TeacherAdapter, conversations: list[Conversation]) -> None:
        model = _load(adapter)
        together = adapter.batch(conversations)
        logits_BTX = _logits(model, together)
        assert together.loss_mask_BT.dtype == torch.bool
        assert together.token_kind_BT.dtype == torch.uint8
        valid_BT = together.inputs["attention_mask"].bool()
        assert together.loss_mask_BT.shape == together.token_kind_BT.shape == valid_BT.shape
        assert torch.equal(together.token_kind_BT == TOKEN_PAD, ~valid_BT), "pads, and pads alone, are TOKEN_PAD"
        assert not bool((together.loss_mask_BT & (together.token_kind_BT == TOKEN_PAD)).any()), "no loss at pads"
        assert not bool((together.loss_mask_BT & (together.token_kind_BT == TOKEN_IMAGE)).any()), "none at images"
        for row, conversation in enumerate(conversations):
            alone = adapter.batch([conversation])
            length = int(valid_BT[row].sum())
            assert bool(valid_BT[row, :length].all()), "whole conversations are padded on the right"
            assert _ids(together, row) == _ids(alone, 0), f"'{conversation.id}' has other tokens in a batch than alone"
            assert torch.equal(together.loss_mask_BT[row, :length], alone.loss_mask_BT[0])
            assert adapter.num_tokens(conversation) == length, f"num_tokens of '{conversation.id}'"
            text = adapter.decode(together.inputs["input_ids"][row][together.loss_mask_BT[row]][None])[0]
            for turn in conversation.turns:
                assert turn.answer in text, f"the loss of '{conversation.id}' does not cover '{turn.answer}'"
                assert turn.question.split("\n")[-1] not in text, f"the loss of '{conversation.id}' covers a question"
            _assert_near(logits_BTX[row, :length], _logits(model, alone)[0], self.padding_tolerance, conversation.id)


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """Stripes whose colour changes with the seed."""
    image = Image.new("RGB", (width, height))
    image.putdata([((x * 7 * seed) % 256, (y * 11) % 256, (x + y) * seed % 256)
                   for y in range(height) for x in range(width)])  # fmt: skip
    return image


def _load(adapter: TeacherAdapter) -> Any:
    return adapter.load(dtype=torch.float32, device="cpu")


def _load_frozen(adapter: TeacherAdapter) -> Any:
    """As conversion leaves it: torch rounds some products otherwise when a weight needs gradients, no_grad or not."""
    return _load(adapter).requires_grad_(False)


@torch.no_grad()
def _logits(model: Any, batch: Batch) -> Tensor:
    logits: Tensor = model(**batch.inputs, use_cache=False).logits
    assert bool(torch.isfinite(logits).all())
    return logits


def _ids(batch: Batch, row: int) -> list[int]:
    ids: list[int] = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist()
    return ids


def _inside(path: str, root: str) -> bool:
    return root == "" or path == root or path.startswith(f"{root}.")


@torch.no_grad()
def _assert_near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    largest = float(expected.double().abs().max())
    distance = float((found.double() - expected.double()).abs().max())
    assert distance <= tolerance * max(largest, 1e-6), f"{what}: off by {distance:.2e}, largest value {largest:.2e}"


def _check_shapes(weights: Any, site: AttentionSite) -> None:
    keys, values = site.num_key_value_heads * site.key_dim, site.num_key_value_heads * site.value_dim
    shapes = {name: tuple(getattr(weights, name).shape) for name in ("q", "k", "v", "o")}
    assert shapes == {
        "q": (site.num_heads * site.key_dim, site.hidden_size),
        "k": (keys, site.hidden_size),
        "v": (values, site.hidden_size),
        "o": (site.hidden_size, site.num_heads * site.value_dim),
    }
