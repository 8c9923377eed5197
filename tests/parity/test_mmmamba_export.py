"""Published mmMamba checkpoints, computed, read and written, against the reference implementation's own exports.

Each folder holds exported students in subfolders, inputs, expected outputs, and the trained parameters behind them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_mmmamba.format import MmMambaFormat
from linearize_mmmamba.schedule import MmMambaSchedule, MmMambaScheduleConfig
from linearize_mmmamba.tensor_files import read_tensors
from safetensors.torch import load_file
from torch import Tensor, nn

from linearize.distill.objectives import LogitKl
from linearize.distill.options import LogitKlConfig
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, NoOptions, TeacherSpec
from linearize.protocols import TOKEN_TEXT, AttentionSite, Batch
from linearize.student.convert import convert, linearized_sites, release_teacher, set_linear
from linearize.student.mixers import build_mixer
from linearize.testing.numbers import ROUNDING

pytestmark = pytest.mark.parity

FIXTURES = Path(os.environ.get("LINEARIZE_FIXTURES", Path(__file__).parent.parent / "fixtures"))
EXPORTS = sorted(path.parent for path in FIXTURES.glob("mmmamba_export*/*/config.json"))
# Of a tensor's largest entry. fp64 lies up to 7e-5 from the reference's logits; other processors add in other orders.
TOLERANCE = 1e-4
# Differences between the teacher's config.json and the export's that say where a model came from, not what it is.
PROVENANCE = {"_name_or_path", "_commit_hash"}

exports = pytest.mark.parametrize("export", EXPORTS, ids=lambda path: f"{path.parent.name}/{path.name}")


def read(export: Path) -> Any:
    return MmMambaFormat(NoOptions()).read(export)


def tensors(export: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(export.parent / "inputs.safetensors"), load_file(export / "io.safetensors")


def inputs_of(group: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "position_ids", "pixel_values")
    return {name: inputs[f"{group}.{name}"] for name in names if f"{group}.{name}" in inputs}


def assert_near(found: Tensor, due: Tensor) -> None:
    torch.testing.assert_close(found, due, atol=TOLERANCE * float(due.abs().max()), rtol=0.0)


@contextmanager
def hidden_states(model: Any) -> Iterator[dict[str, Tensor]]:
    """Fills a dictionary with the hidden states of the next forward, under the fixtures' names."""
    seen: dict[str, Tensor] = {}

    def before(name: str) -> Any:
        return lambda _, args: seen.update({name: args[0]})

    def after(name: str) -> Any:
        return lambda _, args, output: seen.update({name: output})

    handles = []
    for name, tower in (("embedding", model.embedding_model), ("llm", model.language_model)):
        handles.append(tower.layers[0].register_forward_pre_hook(before(f"{name}_input")))
        for number, layer in enumerate(tower.layers):
            handles.append(layer.register_forward_hook(after(f"{name}_layer_{number}")))
    handles.append(model.language_model.norm.register_forward_hook(after("llm_norm")))
    yield seen
    for handle in handles:
        handle.remove()


@exports
def test_logits_and_every_hidden_state_are_the_references(export: Path) -> None:
    inputs, due = tensors(export)
    model = read(export)
    with torch.no_grad(), hidden_states(model) as seen:
        logits = model(**inputs_of("image", inputs)).logits
    assert_near(logits, due["image.logits"])
    prefix = "image.hidden."
    named = {name.removeprefix(prefix): tensor for name, tensor in due.items() if name.startswith(prefix)}
    assert named
    assert named.keys() <= seen.keys()
    for name, tensor in named.items():
        assert_near(seen[name], tensor)


@exports
def test_text_alone_and_a_text_longer_than_a_chunk_give_the_references_logits(export: Path) -> None:
    inputs, due = tensors(export)
    model = read(export)
    with torch.no_grad():
        assert_near(model(**inputs_of("text", inputs)).logits, due["text.logits"])
        long = model(**inputs_of("long_text", inputs)).logits
    (last,) = (tensor for name, tensor in due.items() if name.startswith("long_text.logits_last"))
    assert_near(long[:, -last.shape[1] :], last)


@pytest.mark.parametrize("use_cache", [True, False])
@exports
def test_greedy_tokens_are_the_references_with_and_without_cache(export: Path, use_cache: bool) -> None:
    _, due = tensors(export)
    model = read(export)
    model.generation_config.eos_token_id = None  # the reference did not stop at it
    prompt = inputs_of("greedy", due)
    wanted = due["greedy.new_ids"]
    ids = model.generate(
        **prompt,
        attention_mask=torch.ones_like(prompt["input_ids"]),
        max_new_tokens=wanted.shape[1],
        do_sample=False,
        use_cache=use_cache,
    )
    assert ids[:, prompt["input_ids"].shape[1] :].tolist() == wanted.tolist()


@exports
def test_writing_what_was_read_gives_the_same_files(export: Path, tmp_path: Path) -> None:
    MmMambaFormat(NoOptions()).write(read(export), tmp_path)
    assert_same_tensors(read_tensors(tmp_path), read_tensors(export))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((export / "config.json").read_text())


@exports
def test_the_student_built_from_teacher_and_trained_parameters_is_the_export(export: Path, tmp_path: Path) -> None:
    student = from_teacher(export)
    release_teacher(student)
    inputs, due = tensors(export)
    with torch.no_grad():
        logits = student(**inputs_of("image", inputs)).logits
        torch.testing.assert_close(logits, read(export)(**inputs_of("image", inputs)).logits, **ROUNDING)
    assert_near(logits, due["image.logits"])

    MmMambaFormat(NoOptions()).write(student, tmp_path)
    assert_same_tensors(read_tensors(tmp_path), read_tensors(export))
    written, published = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, export))
    assert {k: v for k, v in written.items() if k not in PROVENANCE} == {
        k: v for k, v in published.items() if k not in PROVENANCE
    }


@exports
def test_the_codes_divergence_is_the_references(export: Path) -> None:
    inputs, due = tensors(export)
    stage = MmMambaSchedule(MmMambaScheduleConfig(variant="code")).stages()[2]
    options = {key: value for key, value in stage["objective"].items() if key != "type"}
    objective = LogitKl(LogitKlConfig.model_validate(options))
    batch = image_batch(inputs)
    measured = objective.backward(from_teacher(export), batch, [], objective.weight(batch))
    assert measured.loss == pytest.approx(float(due["image.kl_loss_T1"]), rel=TOLERANCE)


@exports
def test_kept_attention_is_where_the_folder_says(export: Path) -> None:
    kept = json.loads((export.parent / "meta.json").read_text())["kept_attention"]
    linear = {slot.site.index for slot in linearized_sites(read(export))}
    found: dict[str, list[int]] = {"embedding": [], "language": []}
    for site in teacher_sites(export):
        if site.index not in linear:
            found[site.tower].append(site.layer)
    is_hybrid = any(found.values())
    assert found == ({"embedding": kept["embedding"], "language": kept["llm"]} if is_hybrid else {k: [] for k in found})


def image_batch(inputs: dict[str, Tensor]) -> Batch:
    model_inputs = inputs_of("image", inputs)
    kind_BT = torch.full_like(model_inputs["input_ids"], TOKEN_TEXT, dtype=torch.uint8)
    return Batch(model_inputs, torch.ones_like(kind_BT, dtype=torch.bool), kind_BT)


def assert_same_tensors(found: dict[str, Tensor], due: dict[str, Tensor]) -> None:
    assert found.keys() == due.keys()
    different = [
        name
        for name, tensor in due.items()
        if found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor)
    ]
    assert not different


def teacher_sites(export: Path) -> list[AttentionSite]:
    return list(teacher_adapter(export).sites())


def teacher_adapter(export: Path) -> Any:
    meta = json.loads((export.parent / "meta.json").read_text())
    spec = Plugins.discover().registry.get(TeacherSpec, "hovle")
    folder = (export.parent / meta["teacher"]).resolve()
    return spec.builder()(spec.config_class().model_validate({"checkpoint": str(folder)}))


def from_teacher(export: Path) -> nn.Module:
    """The teacher with every mixer of the training checkpoint, linear where the export is."""
    adapter = teacher_adapter(export)
    folder = Path(adapter.checkpoint)
    model: nn.Module = adapter.from_published(json.loads((folder / "config.json").read_text()), read_tensors(folder))
    spec = Plugins.discover().registry.get(MixerSpec, "mamba2")
    trained = load_file(export.parent / "student_ckpt.safetensors")
    mixers: dict[int, nn.Module] = {}
    for site in adapter.sites():
        prefix = adapter.published_attention_prefix(site).removesuffix(".") + "."
        mixer = build_mixer(spec, spec.config_class()(), site)
        own = {name.removeprefix(prefix): tensor for name, tensor in trained.items() if name.startswith(prefix)}
        own["A_log"] = own.pop("A_log_bias")
        mixer.load_state_dict(own)
        mixers[site.index] = mixer
    convert(model, adapter.sites(), mixers)
    set_linear(model, [slot.site.index for slot in linearized_sites(read(export))])
    return model
