"""What each branch of a student does, by students of which one branch is dead, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from linearize.evaluate.branches.measures import measure_branches
from linearize.evaluate.branches.section import branch_section
from linearize.evaluate.runner import evaluate
from linearize.plugin.components import ResolvedComponent, read_options
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import EvaluatorSpec, MixerSpec
from linearize.protocols import AttentionSite
from linearize.student.branches import without_branch
from linearize.student.convert import convert, linearized_sites, set_linear
from linearize.student.mixers import build_mixer

Student = Callable[..., Any]


@pytest.fixture
def student(tiny_llama: LlamaForCausalLM) -> Student:
    """Makes a student whose window and linear branch have the teacher's projections and these gates."""

    def make(*, window: float, linear: float) -> Any:
        plugins = Plugins.discover()
        spec = plugins.registry.get(MixerSpec, "swa_linear")
        options = read_options(spec.config_class(), {"window": 3, "linear": {"type": "simple_gla"}}, plugins)
        sites = [
            AttentionSite(
                index=layer, path=f"model.layers.{layer}.self_attn", tower="language", layer=layer, cache_index=layer,
                hidden_size=32, num_heads=4, num_key_value_heads=2, key_dim=8, value_dim=8,
            )
            for layer in range(2)
        ]  # fmt: skip
        mixers = {}
        for site in sites:
            mixer: Any = build_mixer(spec, options, site)
            mixer.initialize("scratch", torch.Generator().manual_seed(site.index))
            torch.nn.init.constant_(mixer.window_gate, window)
            torch.nn.init.constant_(mixer.linear_gate, linear)
            attention = tiny_llama.model.layers[site.index].self_attn
            for branch in (mixer.window, mixer.linear):
                for name in ("q_proj", "k_proj", "v_proj"):
                    getattr(branch, name).load_state_dict(getattr(attention, name).state_dict())
            mixers[site.index] = mixer
        model = tiny_llama.eval()
        model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1)
        convert(model, sites, mixers)
        return model

    return make


@pytest.fixture
def asked(adapter: Any, spelling: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def ask(model: Any, **options: Any) -> dict[str, Any]:
        plugins = Plugins.discover()
        spec = plugins.registry.get(EvaluatorSpec, "branches")
        branches = ResolvedComponent(spec, read_options(spec.config_class(), {"questions": 3}, plugins), "core")
        evaluators = {"branches": branches}
        given = {"batch_size": 4, "max_new_tokens": 4, "evaluators": evaluators, "folder": tmp_path, **options}
        return evaluate(model, adapter, {"spelling": spelling(questions=5, dialled=False)}, **given)

    return ask


@pytest.mark.parametrize(("dead", "gates"), [("linear", (1.0, 0.0)), ("window", (0.0, 1.0))])
def test_a_branch_that_adds_nothing_is_reported_as_ignored(
    student: Student, asked: Any, dead: str, gates: tuple[float, float]
) -> None:
    summary = asked(student(window=gates[0], linear=gates[1]))
    branches, section = (summary["evaluators"]["branches"][part] for part in ("results", "section"))
    alive = "window" if dead == "linear" else "linear"
    assert branches["questions"] == 6
    assert branches["each"][dead]["share"] == 0
    assert branches["each"][dead]["sites"] == {"0": 0.0, "1": 0.0}
    assert branches["each"][dead]["without"] == branches["whole"]
    assert branches["each"][alive]["share"] == 1
    assert branches["each"][alive]["without"]["kl"] != branches["whole"]["kl"]
    warning = f"the student ignores its {dead} branch: it adds 0.0 % of what its sites put out"
    assert [text for text in section["warnings"] if "ignores" in text] == [warning]
    rows = {row[0]: row for row in section["rows"]}
    assert rows[dead][1:3] == ["0.0 %", "2 of 2"]
    assert rows[alive][1:3] == ["100.0 %", "0 of 2"]


@torch.no_grad()
def test_shares_are_lengths_behind_the_output_projection_over_valid_tokens(
    student: Student, adapter: Any, spelling: Any
) -> None:
    model = student(window=1.0, linear=0.7)
    # The second site keeps its attention: the first is all there is to measure.
    set_linear(model, [0])
    questions = spelling(questions=4).questions("echo")
    found = measure_branches(model, adapter, questions, batch_size=2)
    assert list(found.sites) == [0]
    lengths = {"window": 0.0, "linear": 0.0}
    errors = {"whole": 0.0, "window": 0.0, "linear": 0.0}
    (slot,) = (slot for slot in linearized_sites(model) if slot.linear)
    for question in questions:
        ids = adapter.batch([question]).inputs["input_ids"]
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
        position = model.model.rotary_emb(x, torch.arange(ids.shape[1])[None])
        target = slot.attention(hidden_states=x, position_embeddings=position, attention_mask=None)[0][0]
        mixer = slot.mixer
        added = {
            "window": (mixer.window(x, position=position)[0] * 1.0).flatten(2) @ slot.o_proj.weight.T,
            "linear": (mixer.linear(x, position=position)[0] * 0.7).flatten(2) @ slot.o_proj.weight.T,
        }
        for name, output in added.items():
            lengths[name] += float(output[0].norm(dim=-1).sum())
            errors[name] += float((sum(y for other, y in added.items() if other != name)[0] - target).square().sum())
        errors["whole"] += float((sum(added.values())[0] - target).square().sum())
    shares = found.sites[0].shares()
    assert shares == pytest.approx({name: length / sum(lengths.values()) for name, length in lengths.items()}, rel=1e-4)
    assert found.sites[0].squared_error == pytest.approx(errors.pop("whole"), rel=1e-4)
    # What is left without a branch is the other one.
    assert found.sites[0].without == pytest.approx(errors, rel=1e-4)


def test_a_branch_without_which_the_student_is_as_near_and_as_right_is_told_whatever_it_adds() -> None:
    whole = {"kl": 0.5, "student": 0.8, "site_error": 0.3, "top1_agreement": 0.9}

    def warnings(**changes: float) -> list[str]:
        branch = {"share": 0.3, "sites": {"0": 0.3}, "without": {**whole, **changes}}
        return list(branch_section({"questions": 9, "whole": whole, "each": {"linear": branch}}).warnings)

    told = "the student gains nothing by its linear branch: without it the KL to the teacher goes 0.500 → "
    assert warnings() == [told + "0.500 and right answers 80.0 % → 80.0 %"]
    assert warnings(kl=0.505, student=0.9) == [told + "0.505 and right answers 80.0 % → 90.0 %"]
    assert warnings(kl=0.6) == warnings(student=0.7) == []


def test_a_look_that_was_stopped_goes_on_where_it_was_and_finds_the_same(
    student: Student, asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = student(window=1.0, linear=1.0)
    seen: list[tuple[str, int, int]] = []
    whole = asked(model, progress=lambda *call: seen.append(call), folder=tmp_path / "unbroken")
    assert seen[-1] == ("branches", 18, 18), "6 questions, with all branches and without each"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("linearize.evaluate.branches.evaluator.generate_answers", stopped)
        with pytest.raises(KeyboardInterrupt):
            asked(model)
    for name in ("runner.generate_answers", "runner.measure_agreement", "branches.evaluator.measure_branches"):
        monkeypatch.setattr(f"linearize.evaluate.{name}", lambda *_, **__: pytest.fail("asked again"))
    assert asked(model) == whole
    monkeypatch.setattr("linearize.evaluate.branches.evaluator.generate_answers", stopped)
    assert asked(model) == whole


def test_a_student_without_branches_has_no_results_of_them(asked: Any, student: Student) -> None:
    model = student(window=1.0, linear=1.0)
    set_linear(model, [])
    assert asked(model)["evaluators"] == {}


def test_a_branch_that_no_site_has_is_refused_with_those_there_are(student: Student) -> None:
    model = student(window=1.0, linear=1.0)
    with (
        pytest.raises(ValueError, match="unknown branch 'far'; the student's branches are: window, linear"),
        without_branch(model, "far"),
    ):
        pass
