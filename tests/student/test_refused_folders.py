"""Folders that hold no whole student, or one that cannot be made here, are refused, and every fault is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from linearize.errors import CheckpointError, PluginError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import TeacherSpec
from linearize.student.modeling import load_student, save_student


def _config(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_folders_without_a_student_are_refused(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder does not exist"):
        load_student(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load_student(tmp_path)
    llama.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model_type 'llama'"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_student(tmp_path)


def test_cut_weight_files_are_refused(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) - 5, len(whole) // 2, 4, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            load_student(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read: .*model\.safetensors"):
        load_student(tmp_path)


def test_missing_surplus_and_misshapen_tensors_are_named(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.2.self_attn.mixer.k_proj.weight"

    def save(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, path, metadata={"format": "pt"})

    save({key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=rf"1 missing \({name}\)"):
        load_student(tmp_path)
    save(tensors | {"model.layers.2.self_attn.q_proj.weight": torch.zeros(32, 32)})
    with pytest.raises(CheckpointError, match=r"1 surplus \(model\.layers\.2\.self_attn\.q_proj\.weight\)"):
        load_student(tmp_path)
    save(tensors | {name: torch.zeros(32, 31)})
    with pytest.raises(CheckpointError, match="1 of another shape"):
        load_student(tmp_path)


def _add_teacher(plugins: Plugins, target: str) -> None:
    """Another plug-in with a teacher of Llama models."""
    spec = TeacherSpec(name="other", build="none:none", source="https://example.org", model_types={"llama": target})
    plugins.registry.registrar("other")(spec)


def test_mixers_and_teachers_that_are_not_installed_are_named(llama: Any, plugins: Plugins, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path)
    plugins.registry.remove_owner("toy")
    plugins.registry.remove_owner("transformers")
    with pytest.raises(CheckpointError, match="students of 'llama' models need a teacher plug-in"):
        load_student(tmp_path)
    _add_teacher(plugins, "transformers:LlamaForCausalLM")
    with pytest.raises(CheckpointError, match=r"mixer 'toy' of plug-in 'toy 7', which cannot be built.*unknown mixer"):
        load_student(tmp_path)


def test_descriptions_that_do_not_fit_are_refused(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path)
    original = (tmp_path / "config.json").read_text()

    def expect(match: str, change: Any) -> None:
        (tmp_path / "config.json").write_text(original)
        _config(tmp_path, change)
        with pytest.raises(CheckpointError, match=match):
            load_student(tmp_path)

    expect("does not describe a student", lambda config: config.pop("linearize"))
    expect("saved by linearize 9.9", lambda config: config["linearize"].update(version="9.9", colour="red"))
    expect("which it does not list", lambda config: config["linearize"].update(sites=[]))
    expect(r"saved in format 9, .* update linearize", lambda config: config["linearize"].update(format=9, colour="red"))
    for field, value in (("hidden_size", -32), ("num_heads", 0), ("value_dim", -8), ("cache_index", -1), ("window", 0)):
        expect(rf"sites\.1\.{field}", lambda config, f=field, v=value: config["linearize"]["sites"][1].update({f: v}))
    for field, what in (("cache_index", "the cache slot 0"), ("path", "the module model")):
        doubled = json.loads(original)["linearize"]["sites"][0][field]
        expect(what, lambda config, f=field, v=doubled: config["linearize"]["sites"][1].update({f: v}))
    expect("two mixers to site 0", lambda config: config["linearize"]["mixers"][1].update(site=0))
    expect(
        "do not fit a Linearized",
        lambda config: config["linearize"]["sites"][3].update(path="model.layers.8.self_attn"),
    )
    expect("cannot be built here", lambda config: config["linearize"]["mixers"][0].update(options={"strengths": 1}))


def test_two_teachers_with_different_models_of_one_type_are_refused(
    llama: Any, plugins: Plugins, tmp_path: Path
) -> None:
    save_student(llama.convert(), tmp_path)
    _add_teacher(plugins, "transformers:LlamaForSequenceClassification")
    with pytest.raises(CheckpointError, match="teachers other, toy_teacher bring different 'llama' models"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    ("target", "match"), [("json:dumps", "expected a PreTrainedModel class"), ("no_such:X", "import failed")]
)
def test_a_teacher_with_a_wrong_model_class_is_refused(
    target: str, match: str, llama: Any, plugins: Plugins, tmp_path: Path
) -> None:
    save_student(llama.convert(), tmp_path)
    plugins.registry.remove_owner("toy")
    _add_teacher(plugins, target)
    with pytest.raises(PluginError, match=match):
        load_student(tmp_path)
