"""What is saved is what was in memory, or it is refused: ties, dtypes, tables, options, and copies by pickle."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from linearize.errors import CheckpointError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student.branches import without_branch
from linearize.student.consistency import set_ties
from linearize.student.convert import linearized_sites
from linearize.student.modeling import load_student, save_student
from linearize.testing.numbers import ROUNDING


def _same(first: Any, second: Any) -> None:
    """Equal tensors with equal dtypes under equal names."""
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def test_a_head_that_its_checkpoint_unties_comes_back(llama: Any, tmp_path: Path) -> None:
    """transformers leaves tables apart that a file has twice, though the configuration says that they are one."""
    llama.model.save_pretrained(tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    llama.model = LlamaForCausalLM.from_pretrained(tmp_path / "teacher")
    assert llama.model.config.tie_word_embeddings
    assert llama.model.lm_head.weight is not llama.model.model.embed_tokens.weight
    model = llama.convert(llama.hybrid)
    expected = _logits(model, llama.inputs)
    save_student(model, tmp_path / "student")
    torch.testing.assert_close(_logits(load_student(tmp_path / "student"), llama.inputs), expected)


@pytest.mark.parametrize("how", ["save_student", "save_pretrained"])
def test_tables_come_back_as_one_or_as_two_whatever_the_configuration_says(
    how: str, llama: Any, tmp_path: Path
) -> None:
    save_student(llama.convert(), tmp_path / "untied")
    for tied in (True, False):
        student = load_student(tmp_path / "untied")
        student.config.tie_word_embeddings = not tied
        if tied:
            student.lm_head.weight = student.model.embed_tokens.weight
        folder = tmp_path / f"{how} {tied}"
        save_student(student, folder) if how == "save_student" else student.save_pretrained(folder)
        loaded = load_student(folder)
        _same(loaded, student)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


class TwoHeads(PreTrainedModel):
    """Its configuration ties both heads to the table, or neither."""

    _tied_weights_keys: ClassVar[Any] = {"first.weight": "table.weight", "second.weight": "table.weight"}

    def __init__(self, ties: Collection[str]) -> None:
        super().__init__(PretrainedConfig(tie_word_embeddings=False))
        self.table, self.first, self.second = nn.Embedding(5, 3), *(nn.Linear(3, 5, bias=False) for _ in range(2))
        for name in ties:
            getattr(self, name).weight = self.table.weight


@pytest.mark.parametrize(("ties", "tied"), [((), False), (("first", "second"), True)])
def test_tables_that_are_tied_all_or_none_are_described_so(ties: Collection[str], tied: bool) -> None:
    model = TwoHeads(ties)
    model.config.tie_word_embeddings = not tied
    set_ties(model, dict(model.named_parameters(remove_duplicate=False)))
    assert model.config.tie_word_embeddings is tied


@pytest.mark.parametrize("tied", ["first", "second"])
def test_tables_of_which_some_are_tied_are_refused(tied: str) -> None:
    model = TwoHeads([tied])
    with pytest.raises(ValueError, match=r"some are one tensor and some are two.*; tie all of them or none"):
        set_ties(model, dict(model.named_parameters(remove_duplicate=False)))


@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["save_student", "save_pretrained"])
def test_parameters_of_two_dtypes_keep_theirs(how: str, first: torch.dtype, llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(llama.hybrid), tmp_path / "plain")
    student = load_student(tmp_path / "plain").to(torch.bfloat16)
    student.model.embed_tokens.to(first)
    student.model.norm.float()
    for slot in linearized_sites(student):
        slot.mixer.log_decay.data = slot.mixer.log_decay.data.float()
        slot.mixer.v_proj.float()
    folder = tmp_path / "mixed"
    save_student(student, folder) if how == "save_student" else student.save_pretrained(folder)
    _same(load_student(folder), student)


def test_two_low_precisions_are_refused(llama: Any, tmp_path: Path) -> None:
    model = llama.convert().to(torch.bfloat16)
    model.lm_head.to(torch.float16)
    with pytest.raises(ValueError, match="bfloat16 and float16"):
        save_student(model, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_was_resized_comes_back_and_a_table_that_was_exchanged_is_refused(
    llama: Any, tmp_path: Path
) -> None:
    model = llama.convert()
    model.resize_token_embeddings(67)
    save_student(model, tmp_path / "resized")
    assert load_student(tmp_path / "resized").lm_head.weight.shape == (67, 32)
    model.lm_head = nn.Linear(32, 71, bias=False)
    with pytest.raises(ValueError, match=r"lm_head.weight \[71, 32\] instead of \[67, 32\]"):
        save_student(model, tmp_path / "exchanged")
    assert not (tmp_path / "exchanged").exists()


def test_parameters_that_the_configuration_does_not_know_are_refused(llama: Any, tmp_path: Path) -> None:
    model = llama.convert(llama.hybrid)
    model.model.layers[0].mlp.register_parameter("lora_A", nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(ValueError, match=r"1 that its configuration does not know \(model\.layers\.0\.mlp\.lora_A\)"):
        save_student(model, tmp_path / "student")


class _Adapted(nn.Module):
    """A projection with low-rank halves beside it, under the names that peft gives them."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["save_student", "save_pretrained"])
def test_a_student_with_an_adapter_is_refused_until_it_is_merged(how: str, llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path / "plain")
    student = load_student(tmp_path / "plain")
    mixer = linearized_sites(student)[0].mixer
    mixer.q_proj = adapted = _Adapted(mixer.q_proj)
    save = (lambda: save_student(student, tmp_path / "student")) if how == "save_student" else (
        lambda: student.save_pretrained(tmp_path / "student")
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"does not know \(.*lora_A.*\); 1 less \(.*q_proj\.weight\)\. Merge adapters"):
        save()
    assert not (tmp_path / "student").exists()

    adapted.base_layer.weight.data += adapted.lora_B.weight @ adapted.lora_A.weight
    mixer.q_proj = adapted.base_layer
    save()
    _same(load_student(tmp_path / "student"), student)


def test_tensors_on_no_device_are_refused(llama: Any, tmp_path: Path) -> None:
    model = llama.convert()
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match=r"1 tensors are on no device \(lm_head\.weight\)"):
        save_student(model, tmp_path / "student")


def test_a_student_without_one_of_its_branches_is_refused(llama: Any, plugins: Plugins, tmp_path: Path) -> None:
    model = llama.convert(None, plugins.registry.get(MixerSpec, "swa_linear"))
    branch = linearized_sites(model)[0].mixer.branches[0]
    with without_branch(model, branch), pytest.raises(ValueError, match=f"runs without {branch}"):
        save_student(model, tmp_path / "student")


def test_generation_options_without_effect_are_saved_as_they_are(llama: Any, tmp_path: Path) -> None:
    """transformers reads such a file and refuses to write one, which a run would learn at its end."""
    llama.model.generation_config.update(do_sample=False, temperature=0.6, max_new_tokens=77)
    save_student(llama.convert(), tmp_path / "student")
    loaded = load_student(tmp_path / "student").generation_config
    assert (loaded.do_sample, loaded.temperature, loaded.max_new_tokens) == (False, 0.6, 77)


def _pickled(student: Any) -> Any:
    return pickle.loads(pickle.dumps(student))


def _through_torch(student: Any) -> Any:
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [_pickled, _through_torch, copy.deepcopy])
def test_a_student_can_be_pickled_and_copied(copied: Any, hovle: Any, tmp_path: Path) -> None:
    save_student(hovle.convert(hovle.hybrid), tmp_path / "student")
    student = load_student(tmp_path / "student")
    again = copied(student)
    assert type(again) is type(student)
    assert again.config is not student.config
    assert again.config.to_dict() == student.config.to_dict()
    _same(again, student)
    torch.testing.assert_close(_logits(again, hovle.inputs), _logits(student, hovle.inputs), **ROUNDING)
    save_student(again, tmp_path / "again")
    _same(load_student(tmp_path / "again"), student)


def test_plug_ins_that_were_added_in_code_are_handed_through(
    llama: Any, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = llama.convert(llama.hybrid)
    monkeypatch.setattr(Plugins, "discover", classmethod(lambda cls: Plugins()))
    with pytest.raises(CheckpointError, match="students of 'llama' models need a teacher plug-in"):
        save_student(model, tmp_path / "student")
    save_student(model, tmp_path / "student", plugins=plugins)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["linearize"]["mixers"][0]["plugin"] == "toy 7"
    with pytest.raises(CheckpointError, match="students of 'llama' models need a teacher plug-in"):
        load_student(tmp_path / "student")
    assert torch.equal(
        load_file(tmp_path / "student" / "model.safetensors")["lm_head.weight"],
        load_student(tmp_path / "student", plugins=plugins).lm_head.weight,
    )
