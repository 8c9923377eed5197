"""The published format on students of a tiny random HoVLE; parity with real exports is tests/parity's matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from linearize_hovle.tokenization import HovleTokenizer
from linearize_mmmamba.format import MmMambaFormat
from linearize_mmmamba.tensor_files import read_tensors, write_tensors
from torch import Tensor, nn
from transformers import LlamaConfig

from linearize import load_student
from linearize.errors import CheckpointError, UnknownNameError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import FormatSpec, NoOptions
from linearize.student.convert import linearized_sites, release_teacher, teacher_route
from linearize.student.mixers import MixerOrigin
from linearize.student.modeling import save_student
from linearize.testing.numbers import ROUNDING

IDS = torch.tensor([[1, 5, 9, 13, 2, 7, 30]])
HYBRID = (1, 2, 4)


@pytest.fixture
def checkpoints() -> MmMambaFormat:
    return MmMambaFormat(NoOptions())


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_format_is_registered_for_the_published_model_type() -> None:
    spec = Plugins.discover().registry.get(FormatSpec, "mmmamba")
    assert spec.model_types == {"mmMamba_chat"}
    assert isinstance(spec.builder()(spec.config_class()()), MmMambaFormat)


@pytest.mark.parametrize("linear", [range(5), HYBRID, (3,)])
def test_a_written_student_is_read_back_with_the_same_logits(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path, linear: Any
) -> None:
    student = make_student(linear)
    checkpoints.write(student, tmp_path)
    back = checkpoints.read(tmp_path)
    assert [slot.site.index for slot in linearized_sites(back)] == list(linear)
    torch.testing.assert_close(logits(back), logits(student), **ROUNDING)


def test_config_says_of_every_layer_of_both_towers_what_it_is(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(HYBRID), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["embedding_config"]["layers_block_type"] == ["mha", "mamba2"]
    assert config["llm_config"]["layers_block_type"] == ["mamba2", "mha", "mamba2"]
    assert config["architectures"] == "mmMambaChatModel"


def test_shards_hold_the_same_tensors_as_one_file(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    student = make_student(HYBRID)
    checkpoints.write(student, tmp_path / "one")
    checkpoints.write(student, tmp_path / "many", max_shard_size=8_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    one, many = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    torch.testing.assert_close(logits(checkpoints.read(tmp_path / "many")), logits(student), **ROUNDING)


def test_writing_does_not_change_the_student_and_releasing_its_teacher_changes_no_file(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    student = make_student(HYBRID)
    before = logits(student)
    checkpoints.write(student, tmp_path / "before")
    assert torch.equal(logits(student), before)
    with teacher_route(student):  # still possible: every site has both
        assert not torch.equal(logits(student), before)
    release_teacher(student)
    checkpoints.write(student, tmp_path / "after")
    old, new = read_tensors(tmp_path / "before"), read_tensors(tmp_path / "after")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_bf16_checkpoint_comes_back_to_the_bit_while_the_decay_is_held_in_fp32(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student().to(torch.bfloat16), tmp_path / "first")
    first = read_tensors(tmp_path / "first")
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}
    student = checkpoints.read(tmp_path / "first")
    mixer = linearized_sites(student)[0].mixer
    assert mixer is not None
    assert mixer.get_parameter("dt_bias").dtype == torch.float32
    assert mixer.get_parameter("q_proj.weight").dtype == torch.bfloat16
    checkpoints.write(student, tmp_path / "second")
    second = read_tensors(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("architectures", ["mmMambaChatModel", ["mmMambaChatModel"]])
def test_architectures_may_be_text_or_a_list(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path, architectures: Any
) -> None:
    checkpoints.write(make_student(), tmp_path)
    edit_config(tmp_path, architectures=architectures)
    assert len(linearized_sites(checkpoints.read(tmp_path))) == 5


def test_generation_options_of_the_folder_are_taken_over(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(), tmp_path)
    options = {"_from_model_config": True, "eos_token_id": [2, 17], "transformers_version": "4.37.2"}
    (tmp_path / "generation_config.json").write_text(json.dumps(options))
    model: Any = checkpoints.read(tmp_path)
    assert model.generation_config.eos_token_id == [2, 17]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"conv_activation": "identity"}, "conv_activation = 'identity' .due: 'silu'"),
        ({"output_norm": False, "dt_scales_input": False}, "output_norm = False .*dt_scales_input = False"),
        ({"skip": True}, "skip = True"),
        ({"key_value_heads": "per_query"}, "key_value_heads = 'per_query' .due: 'grouped'"),
        ({"rope": True}, "rope = True"),
        ({"conv_width": 0}, "conv_width = 0"),
    ],
)
def test_a_mixer_that_the_published_code_cannot_compute_is_not_written(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"site 0 .*cannot compute {named}.*linearize's own format"):
        checkpoints.write(make_student(**options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_mixer_is_not_written(make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path) -> None:
    student = make_student()
    linearized_sites(student)[3].mixer.linearize_origin = MixerOrigin("gla", {})
    with pytest.raises(CheckpointError, match=r"site 3 .* holds mixer 'gla'; the mmMamba format has 'mamba2' only"):
        checkpoints.write(student, tmp_path)


def test_a_model_without_linear_sites_is_not_written(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="has no linear site"):
        checkpoints.write(make_student(()), tmp_path)
    with pytest.raises(CheckpointError, match="this Linear has no linear site"):
        checkpoints.write(nn.Linear(2, 2), tmp_path)


def test_a_config_of_another_model_type_is_refused(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(), tmp_path)
    edit_config(tmp_path, model_type="internvl_chat")
    with pytest.raises(CheckpointError, match="model_type 'internvl_chat'; expected 'mmMamba_chat'"):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize("found", [None, ["mamba2"], ["mamba2", "mamba2", "attention"]])
def test_a_list_of_layer_types_that_does_not_fit_is_refused(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path, found: Any
) -> None:
    checkpoints.write(make_student(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, llm_config=config["llm_config"] | {"layers_block_type": found})
    with pytest.raises(CheckpointError, match=r"llm_config.layers_block_type is .*expected a list of 3 entries"):
        checkpoints.read(tmp_path)


def test_a_layer_that_is_linear_by_name_only_is_refused(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(HYBRID), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, embedding_config=config["embedding_config"] | {"layers_block_type": ["mamba2", "mamba2"]})
    lacking = r"embedding_model.encoder.0.attention 'mamba2', but the weights lack .*encoder.0.attention.wvkqgdt.weight"
    with pytest.raises(CheckpointError, match=lacking):
        checkpoints.read(tmp_path)


def test_a_fused_matrix_of_another_width_is_refused_with_both_shapes(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(), tmp_path)
    tensors = read_tensors(tmp_path)
    name = "language_model.model.layers.0.attention.wvkqgdt.weight"
    tensors[name] = tensors[name][:-1]
    write_tensors(tensors, tmp_path, "5GB")
    with pytest.raises(CheckpointError, match=r"site 2: wvkqgdt.weight has shape \[51, 16\].*asks for \[52, 16\]"):
        checkpoints.read(tmp_path)


def test_a_missing_shard_and_a_damaged_file_are_named(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(), tmp_path, max_shard_size=8_000)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=f"{shard.name} is damaged or cut short"):
        checkpoints.read(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} does not exist"):
        checkpoints.read(tmp_path)


def test_without_the_teachers_plug_in_the_error_names_what_is_missing(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(), tmp_path)
    with pytest.raises(UnknownNameError, match="unknown teacher 'hovle'"):
        MmMambaFormat(NoOptions(), Plugins()).read(tmp_path)


def test_a_checkpoint_that_is_there_is_not_overwritten(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds config\.json of another checkpoint"):
        checkpoints.write(make_student(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_load_student_reads_the_published_format_and_save_student_keeps_it_exact(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(HYBRID), tmp_path / "published")
    student = load_student(tmp_path / "published")
    save_student(student, tmp_path / "own")
    own = load_student(tmp_path / "own")
    torch.testing.assert_close(logits(own), logits(student), **ROUNDING)
    checkpoints.write(own, tmp_path / "again")
    first, second = read_tensors(tmp_path / "published"), read_tensors(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "published/config.json").read_text()


def test_a_student_of_another_teacher_is_not_written(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    student = make_student()
    student.config = LlamaConfig()
    with pytest.raises(CheckpointError, match="base model is 'llama'; the mmMamba format holds students of hovle only"):
        checkpoints.write(student, tmp_path)


def test_answers_end_at_the_mark_that_closes_a_turn_where_the_folder_has_a_tokenizer(
    make_student: Any, checkpoints: MmMambaFormat, tmp_path: Path
) -> None:
    checkpoints.write(make_student(), tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red circle", "the blue square"] * 20), model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=290, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = HovleTokenizer(str(tmp_path / "tokenizer.model"))
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_end|>", "</s>", "<IMG_CONTEXT>")}
    config = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, embedding_config=config["embedding_config"] | {"img_context_token_id": ids["<IMG_CONTEXT>"]})
    model: Any = checkpoints.read(tmp_path)
    assert model.generation_config.eos_token_id == sorted({ids["<|im_end|>"], ids["</s>"]})
