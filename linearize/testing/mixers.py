"""What every mixer has to keep, as a class of tests to inherit from.

    from linearize.testing import MixerConformance


    class TestRetention(MixerConformance):
        name = "retention"
        options = ({}, {"rope": False})

runs every check below with each of the two option tables. All run on tiny shapes on a CPU.
Letters: B batch, T tokens, D model width, N query heads, K key width, V value width.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from linearize.distill.seeding import require_full_account
from linearize.errors import LinearizeError
from linearize.plugin.config import Config
from linearize.plugin.specs import MixerSpec, SeederSpec
from linearize.protocols import AttentionSite, State
from linearize.recipe.toml import to_inline
from linearize.student.branches import branches_of, leaving_out
from linearize.testing.mixer_inputs import attention_weights, changed_output, described, installed_plugins
from linearize.testing.numbers import assert_near, distance, draw, positions_of, slope

Options = Mapping[str, Any]

LENGTHS = (1, 63, 64, 65, 200)
"""Around the borders of the chunks that kernels cut a sequence into, and well past them."""
SETTLED = 20
"""Pads after which no convolution sees a real token any more; mixers may look back at most so far."""


class Run(NamedTuple):
    """What one call of a mixer gave."""

    y_BTNV: Tensor
    state: State


class MixerConformance:
    """Inherit from it, name the mixer, and give the option tables to try.

    Attributes:
        name: what a recipe writes behind ``student.mixer.type``.
        options: option tables; each check runs with each of them.
        site: the attention whose place the mixer takes; query heads share keys and values, K and V differ.
        dtype, tolerance: what most checks compute in, and how far two ways to the same numbers may be apart, in the
            norm. float64 leaves the order of sums as the only difference. A mixer that computes in float32 whatever it
            is given says ``dtype = torch.float32`` and, for example, ``tolerance = 1e-4``.
        bf16_tolerance: how far a bf16 mixer may be from the float32 one: a layer rounds to 8 bits a dozen times.
        device: "cuda" for kernels that run nowhere else.
    """

    name: ClassVar[str]
    options: ClassVar[Sequence[Options]] = ({},)
    site: ClassVar[AttentionSite] = AttentionSite(
        index=1, path="layers.1.self_attn", tower="language", layer=1, num_layers=4, cache_index=1, hidden_size=12,
        num_heads=4, num_key_value_heads=2, key_dim=6, value_dim=5,
    )  # fmt: skip
    dtype: ClassVar[torch.dtype] = torch.float64
    tolerance: ClassVar[float] = 1e-9
    bf16_tolerance: ClassVar[float] = 0.1
    device: ClassVar[str] = "cpu"

    # What an author may override.

    def spec(self) -> MixerSpec:
        """The registered mixer."""
        return installed_plugins().registry.get(MixerSpec, self.name, installed_plugins().failures_hint())

    def build(self, options: Options) -> Any:
        """The mixer of ``site`` with these options, as its constructor leaves it."""
        spec = self.spec()
        return spec.builder()(spec.config_class().model_validate(options), self.site)

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor | None:
        """The output [T, N, V] of one row by the slowest and plainest code; None: there is no reference.

        Args:
            position: cos and sin [1, T, K], which the mixer was given too.
        """
        del mixer, x_TD, position
        return None

    # What the checks are made of.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs each check once for each option table."""
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", self.options, ids=[to_inline(options) for options in self.options])

    def ready(self, options: Options, seed: int = 0) -> Any:
        """A mixer whose parameters have all been moved off their starting values, which would hide parts of it."""
        mixer = self.build(options)
        mixer.initialize("scratch", torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        return mixer.to(self.device, self.dtype).eval()

    def inputs(self, length: int, *, batch: int = 2, seed: int = 0) -> Tensor:
        """Standard normal [B, T, D]."""
        return draw(batch, length, self.site.hidden_size, seed=seed, dtype=self.dtype, device=self.device)

    def run(self, mixer: Any, x_BTD: Tensor, *, start: int = 0, ids_T: Sequence[int] | None = None, **more: Any) -> Run:
        """One call, with the rotary embedding of positions ``start``, ``start`` + 1, ... or ``ids_T``."""
        ids = range(start, start + x_BTD.shape[1]) if ids_T is None else ids_T
        return Run(*mixer(x_BTD, position=positions_of(list(ids), self.site.key_dim, x_BTD), **more))

    def in_parts(self, mixer: Any, x_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
        """The output of the whole, computed in calls of ``lengths`` tokens that hand the state on."""
        parts, state, start = [], None, 0
        for length in lengths:
            y_BTNV, state = self.run(mixer, x_BTD[:, start : start + length], start=start, state=state)
            parts.append(y_BTNV)
            start += length
        return torch.cat(parts, 1)

    def near(self, found: Tensor, wanted: Tensor, what: str) -> None:
        """Fails unless both are the same numbers up to ``tolerance``."""
        assert_near(found, wanted, self.tolerance, what)

    # The checks.

    @torch.no_grad()
    def test_every_length_gives_the_beginning_of_a_longer_sequence(self, options: Options) -> None:
        """Lengths around chunk borders: the shape, and the numbers of the same tokens at the longest length."""
        mixer, x = self.ready(options), self.inputs(max(LENGTHS))
        longest = self.run(mixer, x).y_BTNV
        for length in LENGTHS:
            y = self.run(mixer, x[:, :length]).y_BTNV
            assert y.shape == (2, length, self.site.num_heads, self.site.value_dim), f"T = {length}"
            self.near(y, longest[:, :length], f"the output at T = {length}, compared with T = {max(LENGTHS)}")

    @torch.no_grad()
    def test_no_output_depends_on_a_later_token(self, options: Options) -> None:
        """Later tokens become a thousand times as large: a maximum or mean over the whole sequence shows."""
        mixer, x = self.ready(options), self.inputs(130)
        before = self.run(mixer, x).y_BTNV
        for first in (1, 64, 100):
            changed = x.clone()
            changed[:, first:] = 1000 * self.inputs(130 - first, seed=first)
            after = self.run(mixer, changed).y_BTNV
            self.near(after[:, :first], before[:, :first], f"outputs before token {first}, when tokens from it change")

    @torch.no_grad()
    def test_an_output_depends_on_earlier_tokens(self, options: Options) -> None:
        """A mixer whose recurrence forgets at once passes most other checks; a short convolution is no help here."""
        mixer, x = self.ready(options), self.inputs(8)
        changed = x.clone()
        changed[:, 0] += 1
        after, before = self.run(mixer, changed).y_BTNV[:, 2], self.run(mixer, x).y_BTNV[:, 2]
        assert distance(after, before) > 1e-6, "the third output ignores the first token"

    @torch.no_grad()
    def test_step_by_step_equals_the_whole(self, options: Options) -> None:
        """Decoding: one token at a time, from no state on."""
        mixer, x = self.ready(options), self.inputs(20)
        self.near(self.in_parts(mixer, x, [1] * 20), self.run(mixer, x).y_BTNV, "token by token")

    @torch.no_grad()
    def test_chunked_prefill_equals_the_whole(self, options: Options) -> None:
        """A prompt in several calls, shorter and longer than a chunk."""
        mixer, x = self.ready(options), self.inputs(170)
        self.near(self.in_parts(mixer, x, [3, 70, 2, 95]), self.run(mixer, x).y_BTNV, "in calls of 3, 70, 2, 95 tokens")

    @torch.no_grad()
    def test_packed_documents_equal_the_documents_alone(self, options: Options) -> None:
        """``segments_BT`` starts the state anew, convolutions included, also for the token that follows."""
        mixer, x, lengths = self.ready(options), self.inputs(100, batch=1), (3, 1, 66, 30)
        ids = [i for length in lengths for i in range(length)]
        segments = torch.tensor([[7 - n for n, length in enumerate(lengths) for _ in range(length)]]).to(self.device)
        packed = self.run(mixer, x, ids_T=ids, segments_BT=segments)
        alone = [self.run(mixer, part) for part in x.split(list(lengths), 1)]
        for part, run in zip(packed.y_BTNV.split(list(lengths), 1), alone, strict=True):
            self.near(part, run.y_BTNV, f"a packed document of {part.shape[1]} tokens")
        then = self.inputs(1, batch=1, seed=1)
        found, wanted = (self.run(mixer, then, start=lengths[-1], state=run.state) for run in (packed, alone[-1]))
        self.near(found.y_BTNV, wanted.y_BTNV, "the token after the last packed document")

    @torch.no_grad()
    def test_a_left_padded_row_equals_the_row_alone(self, options: Options) -> None:
        """Pads before a row: nothing is written, and convolutions see zeros; also for the token that follows."""
        mixer, x, pads = self.ready(options), self.inputs(40), 13
        valid = torch.ones(2, 40, dtype=torch.bool, device=self.device)
        valid[0, :pads] = False
        batch, alone, full = (
            self.run(mixer, x, valid_BT=valid), self.run(mixer, x[:1, pads:], start=pads), self.run(mixer, x[1:]),
        )  # fmt: skip
        self.near(batch.y_BTNV[:1, pads:], alone.y_BTNV, "the padded row")
        self.near(batch.y_BTNV[1:], full.y_BTNV, "the row without pads beside it")
        then = self.inputs(1, seed=1)
        following = self.run(mixer, then, start=40, state=batch.state).y_BTNV[:1]
        self.near(following, self.run(mixer, then[:1], start=40, state=alone.state).y_BTNV, "the token that follows")

    @torch.no_grad()
    def test_pads_leave_the_state_alone(self, options: Options) -> None:
        """Pads between a row's tokens, of which 20 or 60 must be the same: no pad lets the state decay."""
        mixer, x, then = self.ready(options), self.inputs(10, batch=1), self.inputs(1, batch=1, seed=1)
        following = []
        for pads in (SETTLED, 3 * SETTLED):
            padded = torch.cat([x, x[:, :1].expand(-1, pads, -1)], 1)
            valid = torch.arange(10 + pads, device=self.device).unsqueeze(0) < 10
            ids = [*range(10), *([10] * pads)]
            state = self.run(mixer, padded, ids_T=ids, valid_BT=valid).state
            following.append(self.run(mixer, then, start=10, state=state).y_BTNV)
        self.near(following[1], following[0], f"the token after {3 * SETTLED} pads, compared with {SETTLED} pads")

    @torch.no_grad()
    def test_the_state_has_one_size_whatever_the_length(self, options: Options) -> None:
        """Linear time and constant memory are what a mixer is for."""
        mixer = self.ready(options)
        sizes = []
        for length in (1, 65, 200):
            state = self.run(mixer, self.inputs(length)).state
            sizes.append({name: tuple(tensor.shape) for name, tensor in state.items()})
        assert sizes[0] == sizes[1] == sizes[2], f"states after 1, 65 and 200 tokens: {sizes}"

    @torch.no_grad()
    def test_its_empty_state_is_the_state_before_the_first_token(self, options: Options) -> None:
        """Memory is counted and allocated with it: names, shapes, dtypes; and what follows from it as from None."""
        mixer, x = self.ready(options), self.inputs(70, batch=3)
        empty = mixer.empty_state(3, device=self.device, dtype=self.dtype)
        after = self.run(mixer, x[:, :1])
        assert described(empty) == described(after.state), (
            f"empty_state() gives {described(empty)}; after a token the state is {described(after.state)}"
        )
        for length in (1, 70):
            from_empty, from_none = (self.run(mixer, x[:, :length], state=state).y_BTNV for state in (empty, None))
            self.near(from_empty, from_none, f"{length} tokens from empty_state(), compared with None")
        on_meta = self.build(options).to("meta").empty_state(3, device="meta", dtype=self.dtype)
        assert described(on_meta) == described(after.state), f'on device "meta" it gives {described(on_meta)}'
        assert all(tensor.is_meta for tensor in on_meta.values()), 'a state on device "meta" takes memory'

    @torch.no_grad()
    def test_a_call_without_a_token_changes_nothing(self, options: Options) -> None:
        """T = 0, as an empty rest of a prompt: an output of no token, and the same state or the empty one."""
        mixer, x, then = self.ready(options), self.inputs(0), self.inputs(1, seed=1)
        for state in (None, self.run(mixer, self.inputs(10)).state):
            found = self.run(mixer, x, start=10, state=state)
            due = (2, 0, self.site.num_heads, self.site.value_dim)
            assert found.y_BTNV.shape == due, f"the output of no token has shape {tuple(found.y_BTNV.shape)}"
            wanted = self.run(mixer, then, start=10, state=state).y_BTNV
            self.near(self.run(mixer, then, start=10, state=found.state).y_BTNV, wanted, "the token after no token")

    @torch.no_grad()
    def test_rows_of_the_state_go_with_rows_of_the_batch(self, options: Options) -> None:
        """Beam search picks rows of every state tensor along its first dimension."""
        mixer, x, then = self.ready(options), self.inputs(10, batch=3), self.inputs(1, batch=3, seed=1)
        state, rows = self.run(mixer, x).state, torch.tensor([2, 0, 0], device=self.device)
        wanted = self.run(mixer, then[rows], start=10, state=self.run(mixer, x[rows]).state).y_BTNV
        picked = {name: tensor.index_select(0, rows) for name, tensor in state.items()}
        found = self.run(mixer, then[rows], start=10, state=picked).y_BTNV
        self.near(found, wanted, "rows 2, 0, 0 of the state")

    def test_every_parameter_gets_a_finite_gradient(self, options: Options) -> None:
        """And one that is not zero: a parameter that nothing depends on would never be trained."""
        mixer, x = self.ready(options), self.inputs(70).requires_grad_()
        self.run(mixer, x).y_BTNV.square().sum().backward()
        for name, tensor in (*mixer.named_parameters(), ("the input", x)):
            assert tensor.grad is not None, f"{name} gets no gradient"
            assert bool(tensor.grad.isfinite().all()), f"the gradient of {name} is not finite"
            assert bool((tensor.grad != 0).any()), f"the gradient of {name} is zero everywhere"

    def test_gradients_are_the_slopes_of_the_output(self, options: Options) -> None:
        """Every parameter and the input against central differences along one random direction each."""
        if self.dtype != torch.float64:
            pytest.skip(f"central differences need float64; this mixer is tested in {self.dtype}")
        mixer, x = self.ready(options), self.inputs(70, batch=1).requires_grad_()
        toward = draw(*self.run(mixer, x).y_BTNV.shape, seed=3, dtype=self.dtype, device=self.device)
        named = {**dict(mixer.named_parameters()), "the input": x}
        gradients = torch.autograd.grad(
            (self.run(mixer, x).y_BTNV * toward).sum(), list(named.values()), allow_unused=True
        )
        for (name, tensor), gradient in zip(named.items(), gradients, strict=True):
            if gradient is None or not bool(gradient.isfinite().all()):
                continue  # another check names it
            along = draw(*tensor.shape, seed=4, dtype=self.dtype, device=self.device)
            along /= along.norm()
            found = slope(lambda: (self.run(mixer, x).y_BTNV * toward).sum(), tensor, along)
            error = abs(found - float((gradient * along).sum()))
            # Central differences in float64 are exact to about 1e-9 here.
            assert error <= 1e-6 * float(gradient.norm()) + 1e-9, (
                f"the gradient of {name} says {float((gradient * along).sum()):.6g} along a direction; "
                f"differences say {found:.6g}"
            )

    @torch.no_grad()
    def test_each_branch_can_be_left_out(self, options: Options) -> None:
        """For a mixer that says it has branches: they add up, and its states stay as large."""
        mixer, x = self.ready(options), self.inputs(30)
        names = branches_of(mixer)
        whole, added = self.run(mixer, x), []
        for name in names:
            with leaving_out(mixer, name):
                rest = self.run(mixer, x)
            added.append(whole.y_BTNV - rest.y_BTNV)
            assert distance(rest.y_BTNV, whole.y_BTNV) > 1e-6, f"without its branch '{name}' the output is the same"
            sizes = [{key: tensor.shape for key, tensor in run.state.items()} for run in (rest, whole)]
            assert sizes[0] == sizes[1], f"states without the branch '{name}': {sizes[0]}, with all: {sizes[1]}"
        if names:
            self.near(torch.stack(added).sum(0), whole.y_BTNV, "what the branches add")

    @torch.no_grad()
    def test_a_hook_on_a_module_takes_effect_in_prefill_and_in_steps(self, options: Options) -> None:
        """Adapters, quantisation and offloading wrap modules: one that is read and not called ignores them.

        A mixer may refuse a hook with an error of its own.
        """
        mixer, x, then = self.ready(options), self.inputs(70), self.inputs(1, seed=1)
        state = self.run(mixer, x).state
        calls = {
            "70 tokens": lambda: self.run(mixer, x),
            "a step": lambda: self.run(mixer, then, start=70, state=state),
        }
        before = {what: call() for what, call in calls.items()}
        for name, module in mixer.named_modules():
            if not name or not any(True for _ in module.parameters()):
                continue
            for what, call in calls.items():
                with changed_output(module), suppress(LinearizeError):
                    # A step may use what a module returned at a later token only, and keep it in its state until then.
                    after = call()
                    pairs = [(after.y_BTNV, before[what].y_BTNV)]
                    pairs += [(after.state[key], tensor) for key, tensor in before[what].state.items()]
                    assert any(distance(*pair) > 1e-6 for pair in pairs), (
                        f"a forward hook that changes what '{name}' returns has no effect in {what}; "
                        f"call '{name}' in place of reading its weight"
                    )

    @torch.no_grad()
    def test_bf16_is_near_fp32(self, options: Options) -> None:
        """Over 200 tokens: a decay or a state that is rounded at every token drifts off."""
        mixer, x = self.ready(options).float(), self.inputs(200).bfloat16()
        rounded = copy.deepcopy(mixer).bfloat16()
        # Both of the weights that bf16 can hold, so that the weights' own rounding does not count.
        mixer.load_state_dict(rounded.state_dict())
        y = self.run(rounded, x).y_BTNV
        assert_near(y, self.run(mixer, x.float()).y_BTNV, self.bf16_tolerance, "a bf16 mixer")

    @torch.no_grad()
    def test_it_agrees_with_its_reference(self, options: Options) -> None:
        """The author's own slow code, if there is any."""
        mixer, x = self.ready(options), self.inputs(37)
        wanted = self.reference(mixer, x[1], positions_of(list(range(37)), self.site.key_dim, x))
        if wanted is None:
            pytest.skip("no reference: override `reference` with the formula, token by token")
        self.near(self.run(mixer, x).y_BTNV[1], wanted, "compared with the reference")

    @torch.no_grad()
    def test_a_mixer_saved_and_loaded_is_the_same(self, options: Options) -> None:
        """As a student's folder loads it: built without memory, then given the saved tensors, and nothing else."""
        mixer, x = self.ready(options), self.inputs(9)
        saved = {**mixer.state_dict(), **dict(mixer.named_buffers())}
        with torch.device("meta"):
            other = self.build(options)
        for module in other.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=True)
        other.load_state_dict(saved, strict=True, assign=True)
        assert torch.equal(self.run(other, x).y_BTNV, self.run(mixer, x).y_BTNV), "the loaded mixer computes otherwise"

    def test_its_options_survive_a_recipe_and_a_saved_student(self, options: Options) -> None:
        """Through TOML and through JSON, and an unknown key is refused."""
        model = self.spec().config_class()
        config = model.model_validate(options)
        in_toml = to_inline(config.model_dump(mode="json", exclude_none=True))
        for read in (tomllib.loads(f"options = {in_toml}")["options"], config.model_dump(mode="json")):
            again = model.model_validate(read)
            assert again == config, f"{config!r} comes back as {again!r}"
        with pytest.raises(ValidationError, match="no_such_option"):
            model.model_validate({**options, "no_such_option": 1})
        assert issubclass(model, Config)

    def test_its_start_depends_on_the_generator_alone(self, options: Options) -> None:
        """Not on torch's global generator, nor on what the parameters held before: resuming relies on it."""
        for style in ("mimic", "scratch"):
            starts = []
            for number, fill in ((0, 0.0), (1, 1.0)):
                torch.manual_seed(number)
                mixer = self.build(options)
                for parameter in mixer.parameters():
                    nn.init.constant_(parameter, fill)
                mixer.initialize(style, torch.Generator().manual_seed(5))
                starts.append(dict(mixer.named_parameters()))
            for name, roles in self.build(options).roles().items():
                if style == "scratch" or "new" in roles:
                    assert torch.equal(starts[0][name], starts[1][name]), f"{name} differs after two '{style}' starts"

    def test_every_seeder_can_account_for_it(self, options: Options) -> None:
        """Each installed seeder sets every parameter, from a teacher with biases and one without."""
        seeders = installed_plugins().registry.all(SeederSpec)
        assert seeders, "no seeder is installed; linearize brings 'mimic', 'copy_qkv' and 'scratch'"
        for spec in seeders:
            for biases in (False, True):
                mixer, weights = self.build(options), attention_weights(self.site, biases=biases)
                seeder = spec.builder()(spec.config_class()())
                report = seeder.seed(weights, mixer, site=self.site, generator=torch.Generator().manual_seed(0))
                require_full_account(report, dict(mixer.named_parameters()), weights.tensors(), seeder)
                unset = [name for name, p in mixer.named_parameters() if not bool(p.isfinite().all())]
                assert not unset, f"seeder '{spec.name}' left {', '.join(unset)} not finite"
