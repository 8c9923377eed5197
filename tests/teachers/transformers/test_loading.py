"""A teacher is what its files hold, or it is refused: missing, cut and left out tensors, and quantised ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.models import TABLES, auto_class, model_classes
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from linearize.errors import CheckpointError
from linearize.student.classes import student_class

K_PROJ = "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama's checkpoint to be damaged."""
    shutil.copytree(checkpoint("llama"), tmp_path / "llama")
    return tmp_path / "llama"


def _load(folder: Path) -> Any:
    adapter = TransformersAdapter(TransformersTeacherConfig(checkpoint=str(folder)))
    return adapter.load(dtype=torch.float32, device="cpu")


def _configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", [K_PROJ, "model.embed_tokens.weight", "model.norm.weight"])
def test_a_teacher_that_lacks_a_tensor_is_refused(name: str, folder: Path) -> None:
    _change(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"teacher '.*llama' do not fit .*1 missing \({name}\)"):
        _load(folder)


def test_a_head_that_no_file_holds_is_refused_unless_it_is_tied(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.pop("lm_head.weight", None))
    _configure(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 missing \(lm_head\.weight\).*tie_word_embeddings"):
        _load(folder)
    _configure(folder, tie_word_embeddings=True)
    model = _load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update({K_PROJ: tensors[K_PROJ][1:].clone()}))
    with pytest.raises(CheckpointError, match=r"1 of another shape .*k_proj"):
        _load(folder)


def test_a_bias_that_the_configuration_leaves_out_is_refused(folder: Path) -> None:
    bias = K_PROJ.replace("weight", "bias")
    _change(folder, lambda tensors: tensors.update({bias: torch.ones(tensors[K_PROJ].shape[0])}))
    with pytest.raises(CheckpointError, match=rf"1 surplus \({bias}\)"):
        _load(folder)


def test_tensors_of_another_use_are_no_fault(folder: Path) -> None:
    before = _load(folder).state_dict()
    _change(folder, lambda tensors: tensors.update({"v_head.weight": torch.ones(1, 8)}))
    after = _load(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("part", [None, "text_config"])
def test_a_quantised_teacher_is_refused_by_its_configuration_alone(
    part: str | None, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    family = "llama" if part is None else "smolvlm"
    shutil.copytree(checkpoint(family), tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    owner = config if part is None else config[part]
    owner["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    adapter = TransformersAdapter(TransformersTeacherConfig(checkpoint=str(tmp_path / "teacher")))
    with pytest.raises(CheckpointError, match=r"is quantised .*'gptq'.*model\.dequantize\(\)"):
        adapter.sites()


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (ImportError("SmolVLMImageProcessor requires the torchvision library"), True),
        (ImportError("Loading a GPTQ quantized model requires gptqmodel"), False),
        (ImportError("This tokenizer requires tiktoken"), False),
    ],
)
def test_the_vision_extra_is_named_only_where_it_brings_what_is_missing(
    error: ImportError, helps: bool, folder: Path
) -> None:
    def read(*args: Any, **options: Any) -> Any:
        raise error

    adapter = TransformersAdapter(TransformersTeacherConfig(checkpoint=str(folder)))
    with pytest.raises(CheckpointError, match=str(error)) as told:
        adapter._read("processor", read)
    assert ("linearize[vision]" in str(told.value)) == helps


def test_a_student_whose_class_was_made_is_no_teacher() -> None:
    """transformers' tables name it then, since ``transformers serve`` looks there."""
    before = model_classes()
    config = student_class("smolvlm").config_class
    assert any(config.model_type in names for names, _ in TABLES)
    assert model_classes() == before
    assert before.keys() <= CONFIG_MAPPING_NAMES.keys()
    with pytest.raises(CheckpointError, match="no causal LLM of type 'linearize_smolvlm'"):
        auto_class(config())
