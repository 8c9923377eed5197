"""What every teacher adapter has to keep, as a class of tests to inherit from.

    from linearize.testing import TeacherConformance


    class TestMyTeacher(TeacherConformance):
        def make_adapter(self) -> MyAdapter:
            return MyAdapter(MyConfig(checkpoint=TINY))

runs every check below. The checkpoint should be tiny and random: some layers, each different from the others, weights
large enough that every one of them matters. Letters: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from linearize.distill.objectives import LogitKl
from linearize.distill.options import LogitKlConfig
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.proof.calls import SiteCall
from linearize.proof.case import make_case
from linearize.proof.diagnosis import explain
from linearize.protocols import TOKEN_IMAGE, AttentionSite, Batch, ReadsText, TeacherAdapter
from linearize.protocols.conversation import IMAGE_MARK, Conversation, Turn
from linearize.student.convert import convert, linearized_sites, set_linear, teacher_route
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student, save_student
from linearize.student.snapshot import student_state
from linearize.testing.batch_checks import check_answer, check_batches, check_prompts, check_texts
from linearize.testing.model_checks import (
    assert_logits_near,
    check_cache_name,
    check_cache_slots,
    check_logits,
    check_published,
    check_same_buffers,
    check_same_tensors,
    check_teacher_writes,
)
from linearize.testing.numbers import assert_values_near
from linearize.testing.site_checks import check_call, check_facts, check_module, check_rope, check_shapes, check_theta
from linearize.testing.teacher_inputs import load, load_frozen, logits_of, picture
from linearize.testing.typed_marks import check_typed_marks, check_typed_text
from linearize.testing.watching import attention_calls, record_sites

READERS = (
    "torch.load",
    "safetensors.safe_open",
    "safetensors.torch.load_file",
    "transformers.PreTrainedModel.from_pretrained",
)
"""How weights are read from files."""
ALONE = "a text alone"
LONGEST = 256
"""Tokens of the longest window that the checks look beyond."""


class TeacherConformance:
    """Inherit from it and make the adapter.

    Attributes:
        takes_images: whether conversations may hold images.
        plain_rope: whether the rotary embedding is unscaled, so that its angles follow from ``rope_theta`` alone.
        questions, answers: words that the tiny teacher's tokenizer knows; the second of each longer than the first.
        mixer: the registered mixer that takes the attentions' places; "": the first of those that are installed.
        tolerance: how far a site's own output may be from the same attention written out, relative to its largest
            value. float32 against float64: some 1e-6; bugs are ten thousand times larger.
        padding_tolerance: how far a row's logits in a padded batch may be from the row's alone; the same sums in
            another order.
    """

    takes_images: ClassVar[bool] = True
    plain_rope: ClassVar[bool] = True
    questions: ClassVar[tuple[str, str]] = ("how many are red?", "what is left of the blue square?")
    answers: ClassVar[tuple[str, str]] = ("two", "a circle")
    mixer: ClassVar[str] = ""
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
        small, wide = picture(40, 28, 1), picture(64, 30, 2)
        first, second = (Turn(f"{IMAGE_MARK}\n{turn.question}", turn.answer) for turn in self._turns())
        return [
            Conversation((first,), (small,), id="one image"),
            Conversation((second, first), (wide, small), id="two images"),
        ]

    def load_processor(self, processor: Any, folder: Path) -> Any:
        """The processor that was saved in ``folder``, as whoever takes a student loads it."""
        return type(processor).from_pretrained(folder)

    def call_processor(self, processor: Any, prompt: str, images: list[Image.Image]) -> Mapping[str, Any]:
        """What the processor makes of one prompt, by the call that the adapter makes."""
        options = {"images": [images]} if images else {}
        outputs: Mapping[str, Any] = processor(text=[prompt], return_tensors="pt", **options)
        return outputs

    def _turns(self) -> tuple[Turn, Turn]:
        first, second = (Turn(*pair) for pair in zip(self.questions, self.answers, strict=True))
        return first, second

    @pytest.fixture
    def adapter(self) -> TeacherAdapter:
        """The adapter that the checks get; bars over weight files would stand between their messages."""
        disable_progress_bar()
        return self.make_adapter()

    # The checks.

    def test_sites_are_numbered_in_order_and_fit_their_modules(self, adapter: TeacherAdapter) -> None:
        """Indices from 0, no place twice, and the sizes that the modules have."""
        sites, model = adapter.sites(), load(adapter)
        assert sites, "a teacher without sites cannot be converted"
        numbers = [site.index for site in sites]
        assert numbers == list(range(len(sites))), f"sites are numbered 0, 1, ... through all towers; got {numbers}"
        for name, values in (
            ("path", [site.path for site in sites]),
            ("cache_index", [site.cache_index for site in sites]),
        ):
            assert len(set(values)) == len(sites), f"each site has a {name} of its own; got {values}"
        modules = dict(model.named_modules())
        for site in sites:
            check_module(modules, site)

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
        load(adapter)
        assert list(adapter.sites()) == sites, "sites() gives other sites after load() than before"

    def test_sites_are_all_attentions_of_the_decoder_in_the_order_they_run(self, adapter: TeacherAdapter) -> None:
        """Counted where softmax attention is computed, whichever module does it."""
        model = load(adapter)
        batch = adapter.batch(self.text_conversations()[:1])
        decoder = model.get_decoder()
        root = next(name for name, module in model.named_modules() if module is decoder)
        with attention_calls(model) as calls, torch.no_grad():
            model(**batch.inputs, use_cache=False)
        paths = [site.path for site in adapter.sites()]
        seen = [next((path for path in paths if _inside(call, path)), "") for call in calls]
        ran = [path for path in seen if path]
        missed = [call for call, path in zip(calls, seen, strict=True) if not path and _inside(call, root)]
        assert ran == paths, (
            f"each site computes softmax attention once, in the order of the sites; by sites() that is {paths}, the "
            f"model computed it at {ran}, and in the decoder at no site in {missed or 'no module'}"
        )
        assert not missed, (
            f"attention is computed in the decoder, but at no site: {missed}; sites() has to list these too"
        )

    def test_an_attention_is_called_and_answers_as_a_site_does(self, adapter: TeacherAdapter) -> None:
        """Its input first or as hidden_states, all else by name; a tuple back; one call of its output projection."""
        model, sites = load(adapter), adapter.sites()
        batch = adapter.batch(self.text_conversations())
        for use_cache in (False, True):
            for index, call in record_sites(model, sites, batch, use_cache=use_cache).items():
                check_call(call, sites[index], caches=use_cache)

    def test_a_site_can_be_wrapped_without_a_change_of_one_bit(self, adapter: TeacherAdapter) -> None:
        """Nothing but its output may be wanted of an attention module."""
        model = load_frozen(adapter)
        batch = self._full_batch(adapter)
        before = logits_of(model, batch)
        convert(model, adapter.sites(), {})
        assert torch.equal(logits_of(model, batch), before), (
            "with each attention inside a wrapper that calls it, the logits are others. The wrapper passes on the "
            "input and all keywords, so something reads the module itself, such as an attribute of layer.attention"
        )

    def test_the_weights_of_a_site_reproduce_its_output(self, adapter: TeacherAdapter) -> None:
        """Projections, biases, norms, scale, rotary embedding, window and soft cap, by attention written out.

        On texts of several lengths, longer than any window where that is possible, with pads on either side and with
        images. What the site says of these has to be the same. A run looks at the same before it trains.
        """
        model, sites = load(adapter), adapter.sites()
        for name, batch in self._batches_to_reproduce(adapter).items():
            for index, call in record_sites(model, sites, batch).items():
                self._check_site(model, adapter, sites[index], call, name)

    def _check_site(self, model: Any, adapter: TeacherAdapter, site: AttentionSite, call: SiteCall, name: str) -> None:
        __tracebackhide__ = True
        where = f"site {site.index} ({site.path})"
        weights, attention = adapter.weights(model, site), model.get_submodule(site.path)
        check_call(call, site, caches=False)
        check_shapes(weights, site)
        check_rope(site, call.position)
        for row in range(len(call.x_BTD) if site.fully_described else 0):
            case = make_case(call, site, weights, attention, row=row, tolerance=self.tolerance)
            assert_values_near(
                case.found(),
                case.expected(),
                self.tolerance,
                f"{where}, {name}, row {row}: sites() and weights(site) do not describe the module's attention; "
                "before the output projection it is",
                hint=partial(explain, case),
            )
        check_facts(weights, site)  # behind what the module does, which says whose facts are right
        if self.plain_rope and weights.rope_theta is not None and name == ALONE:
            check_theta(weights, site, call.position)
        o_bias = None if weights.o_bias is None else weights.o_bias.double()
        assert_values_near(
            call.output[0],
            F.linear(call.projected[0].double(), weights.o.double(), o_bias),
            self.tolerance,
            f"{where}, {name}: o and o_bias are not weight and bias of '{site.output_projection}', or the module does "
            "something behind it; before it all is right, after it it is",
        )
        if site.own_mask or site.sharpens_from is not None or not site.fully_described:
            assert getattr(adapter, "caveats", list)(), (
                f"{where}: own_mask, sharpens_from or fully_described says that the attention does what no mixer does; "
                "give the adapter a method caveats() that says it to people"
            )

    def test_conversion_leaves_the_teacher_route_as_it_was(self, adapter: TeacherAdapter) -> None:
        """With a mixer in every site, whichever of them run, the model still is the teacher, bit for bit."""
        model = load_frozen(adapter)
        batch = self._full_batch(adapter)
        before = logits_of(model, batch)
        self._convert(model, adapter.sites())
        for every in (1, 2):
            set_linear(model, [site.index for site in adapter.sites()[::every]])
            with teacher_route(model):
                assert torch.equal(logits_of(model, batch), before), (
                    "with mixers beside its attentions, the teacher's logits are others: something in the model "
                    "reads the modules or parameters that conversion adds"
                )
        assert not torch.equal(logits_of(model, batch), before), "the student route runs no mixer"

    def test_frozen_means_frozen(self, adapter: TeacherAdapter) -> None:
        """After conversion mixers alone can be trained, and a step's gradients reach all of them."""
        model = load(adapter)
        self._convert(model, adapter.sites())
        mixers = {f"{slot.site.path}.mixer." for slot in linearized_sites(model)}
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        strangers = sorted(name for name in trainable if not any(name.startswith(mixer) for mixer in mixers))
        assert not strangers, f"after conversion these can be trained, though they belong to no mixer: {strangers[:5]}"
        batch = self._full_batch(adapter)
        objective = LogitKl(LogitKlConfig())
        sites = range(len(adapter.sites()))
        objective.backward(model, batch, sites, objective.weight(batch))
        gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert gradients == trainable, (
            f"a step of logit_kl left mixers without a gradient: {sorted(trainable - gradients)[:5]}; or gave one to "
            f"what is frozen: {sorted(gradients - trainable)[:5]}. Look for torch.no_grad or detach in the model's "
            "forward"
        )

    def test_objectives_see_the_logits_that_the_model_gives(self, adapter: TeacherAdapter) -> None:
        """Behind its head, too: a stage of logit_kl trains on what generate() will choose from."""
        check_logits(load_frozen(adapter), self._full_batch(adapter), self.tolerance)

    def test_a_student_writes_with_a_cache_what_it_writes_without(self, adapter: TeacherAdapter) -> None:
        """Every second site linear, left-padded prompts with and without images, greedily; the teacher before it."""
        model = load(adapter)
        check_cache_name(model)
        check_cache_slots(model, adapter.sites())
        batch = adapter.batch(self._all_conversations(), for_generation=True)
        tokenizer = getattr(adapter.processor(), "tokenizer", adapter.processor())
        # An image's tokens mean an image, which a decoding step does not bring.
        images = batch.inputs["input_ids"][batch.token_kind_BT == TOKEN_IMAGE].unique().tolist()
        options = {
            "max_new_tokens": 4,
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
            "suppress_tokens": sorted({*images, *tokenizer.all_special_ids}),
        }
        check_teacher_writes(model, batch, options)
        self._convert(model, adapter.sites(), every=2)
        cached, whole = (
            model.generate(**batch.inputs, generation_config=GenerationConfig(**options, use_cache=use_cache))
            for use_cache in (True, False)
        )
        assert torch.equal(cached, whole), (
            "generate() writes other tokens with a cache than without. In the model, look at positions and masks of "
            "a call that follows another (left padding counts in the mask, not in the positions); in sites(), at "
            "cache_index, the slot that the attention itself uses"
        )

    def test_the_teacher_loads_as_asked_and_the_same_each_time(self, adapter: TeacherAdapter) -> None:
        """In eval mode, in the dtype that is asked for, knowing where an answer ends."""
        model = load(adapter)
        assert not any(module.training for module in model.modules()), "load() returns the model in eval mode"
        batch = adapter.batch(self.text_conversations())
        assert_logits_near(
            logits_of(load(adapter), batch),
            logits_of(model, batch),
            self.tolerance,
            "loaded twice, the model gives two results: weights that no file holds are drawn anew, or buffers are left "
            "unset when from_pretrained builds the model without memory (compute them in forward, or register them "
            "persistent). The second time its logits are",
        )
        assert model.generation_config.eos_token_id is not None, (
            "model.generation_config.eos_token_id must name the token that ends an answer; set it in load()"
        )
        lower = adapter.load(dtype=torch.bfloat16, device="cpu")
        found = next(lower.get_submodule(adapter.sites()[0].path).parameters()).dtype
        assert found == torch.bfloat16, f"load(dtype=torch.bfloat16) gave attention weights of {found}"

    def test_batches_of_text_say_what_each_token_is(self, adapter: TeacherAdapter) -> None:
        """Alone and together; pads, kinds, loss masks and numbers of tokens."""
        check_batches(adapter, self.text_conversations(), self.padding_tolerance)

    def test_batches_with_images_say_what_each_token_is(self, adapter: TeacherAdapter) -> None:
        """The same with images in each row, in some rows, and several in one."""
        if not self.takes_images:
            pytest.skip("this teacher takes no images")
        check_batches(adapter, self.image_conversations(), self.padding_tolerance)
        mixed = [*self.image_conversations(), *self.text_conversations()]
        check_batches(adapter, mixed, self.padding_tolerance)

    def test_running_text_is_read_as_text(self, adapter: TeacherAdapter) -> None:
        """With text_ids() and text_batch(): every token counts, and a row gives in a batch what it gives alone."""
        if not isinstance(adapter, ReadsText):
            pytest.skip("this adapter takes no running text")
        check_texts(adapter, self.text_conversations(), self.padding_tolerance)
        check_typed_text(adapter, self.questions[1])

    def test_prompts_are_padded_on_the_left_and_begin_as_the_conversation_does(self, adapter: TeacherAdapter) -> None:
        """What is generated from is what was trained on, up to where the answer begins."""
        check_prompts(adapter, self._all_conversations())

    def test_an_answer_comes_back_as_text(self, adapter: TeacherAdapter) -> None:
        """Ids that the loss covers decode to the answer, without special tokens."""
        for conversation in (pair[0] for pair in (self.text_conversations(), self.image_conversations()) if pair):
            if conversation.images and not self.takes_images:
                continue
            check_answer(adapter, conversation)

    def test_what_people_type_is_text(self, adapter: TeacherAdapter) -> None:
        """Special tokens in a question or an answer make no image, no turn and no end; or they are refused."""
        check_typed_marks(adapter, self.text_conversations()[0])
        if self.takes_images:
            check_typed_marks(adapter, self.image_conversations()[0])

    def test_the_processor_is_the_same_after_it_was_saved(self, adapter: TeacherAdapter, tmp_path: Path) -> None:
        """It is saved beside a student: the same prompts, the same tokens, the same pixels."""
        processor = adapter.processor()
        processor.save_pretrained(tmp_path)
        again = self.load_processor(processor, tmp_path)
        parts: Any = self.questions[0]
        images: list[Image.Image] = []
        if self.takes_images:
            parts = [{"type": "image"}, {"type": "text", "text": parts}]
            images = [picture(40, 28, 1)]
        message = [{"role": "user", "content": parts}]
        prompts = [one.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                   for one in (processor, again)]  # fmt: skip
        assert prompts[0] == prompts[1], (
            f"the saved processor writes another prompt: {prompts[1]!r}, not {prompts[0]!r}"
        )
        first, second = (self.call_processor(one, prompts[0], images) for one in (processor, again))
        assert set(first) == set(second), f"the processor gave {sorted(first)}, the saved one {sorted(second)}"
        for name in first:
            assert torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])), (
                f"the saved processor gives other {name}: an option of its constructor is not saved (keep it as an "
                "attribute of the same name)"
            )

    def test_a_student_loses_no_tensor_when_it_is_saved(self, adapter: TeacherAdapter, tmp_path: Path) -> None:
        """Every second site linear: mixers and attentions are all there again, bit for bit, and the logits are near.

        Not equal: how a CPU's kernels round depends on where tensors lie in memory.
        """
        model = load(adapter)
        self._convert(model, adapter.sites(), every=2)
        batch = self._full_batch(adapter)
        save_student(model, tmp_path / "student", adapter.processor())
        student = load_student(tmp_path / "student").requires_grad_(False)
        check_same_tensors(student.state_dict(), student_state(model))
        check_same_buffers(student, model)
        assert_logits_near(
            logits_of(student, batch),
            logits_of(model, batch),
            self.tolerance,
            "the saved and loaded student gives other logits: what the model needs beside its tensors, such as options "
            "set after __init__, has to be in its configuration. They are",
        )

    def test_the_published_layout_loses_no_tensor(self, adapter: TeacherAdapter) -> None:
        """For adapters that offer one: there and back again."""
        if not hasattr(adapter, "to_published"):
            pytest.skip("this adapter has no published layout")
        check_published(adapter, load(adapter), list(adapter.sites()))

    # What the checks share.

    def _all_conversations(self) -> list[Conversation]:
        return [*self.text_conversations(), *(self.image_conversations() if self.takes_images else ())]

    def _batches_to_reproduce(self, adapter: TeacherAdapter) -> dict[str, Batch]:
        """Texts of several lengths, the longest longer than any window of up to ``LONGEST`` tokens."""
        first, second = self.text_conversations()
        reach = min(max(site.window or 0 for site in adapter.sites()), LONGEST)
        long = second
        while adapter.num_tokens(long) <= reach + 8:
            long = Conversation((*long.turns, *second.turns), id="longer")
        return {
            ALONE: adapter.batch([long]),
            "pads on the right": adapter.batch(self._all_conversations()),
            "pads on the left": adapter.batch([first, long], for_generation=True),
        }

    def _full_batch(self, adapter: TeacherAdapter) -> Batch:
        return adapter.batch(self._all_conversations())

    def _convert(self, model: Any, sites: Sequence[AttentionSite], every: int = 1) -> None:
        """A mixer with its own start in every ``every``-th site."""
        registry = Plugins.discover().registry
        spec = registry.get(MixerSpec, self.mixer) if self.mixer else registry.all(MixerSpec)[0]
        mixers: dict[int, nn.Module] = {}
        for site in sites[::every]:
            mixer: Any = build_mixer(spec, spec.config_class()(), site)
            mixer.initialize("scratch", torch.Generator().manual_seed(site.index))
            mixers[site.index] = mixer
        convert(model, sites, mixers)


def _inside(path: str, root: str) -> bool:
    return root == "" or path == root or path.startswith(f"{root}.")
