"""Students as folders: the same model comes back, and what others put beside it stays."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from linearize.errors import CheckpointError
from linearize.files import owned_folder
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols import AttentionSite, SiteNorm
from linearize.recipe.reference import OWN_ORIGINS
from linearize.student.convert import convert, converted_sites, linearized_sites, release_teacher
from linearize.student.description import SiteEntry
from linearize.student.modeling import load_student, save_student
from linearize.student.snapshot import student_state
from linearize.testing.numbers import ROUNDING

MIXERS = [
    spec.name
    for record in Plugins.discover().records
    if record.origin in OWN_ORIGINS
    for spec in record.specs
    if isinstance(spec, MixerSpec)
]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["all", "hybrid"])
@pytest.mark.parametrize("released", [False, True])
def test_a_loaded_student_has_the_logits_of_the_model_in_memory(
    teacher: Any, layout: str, released: bool, tmp_path: Path
) -> None:
    model = teacher.convert(None if layout == "all" else teacher.hybrid)
    if released:
        release_teacher(model)
    expected = model(**teacher.inputs).logits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_student(model, tmp_path / "student")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    loaded = load_student(tmp_path / "student")
    state = student_state(model)
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded(**teacher.inputs).logits, expected, **ROUNDING)
    assert loaded.config.model_type == f"linearize_{model.config.model_type}"
    assert converted_sites(loaded) == tuple(teacher.sites)
    assert not loaded.training
    again = tmp_path / "again"
    save_student(loaded, again)
    torch.testing.assert_close(load_student(again)(**teacher.inputs).logits, expected, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("family_layout", ["all", "hybrid"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_students_of_every_mixer_decode_and_come_back(
    hovle: Any, mixer: str, family_layout: str, plugins: Plugins, tmp_path: Path
) -> None:
    spec = plugins.registry.get(MixerSpec, mixer)
    model = hovle.convert(None if family_layout == "all" else hovle.hybrid, spec)
    expected = model(**hovle.inputs).logits
    save_student(model, tmp_path)
    loaded = load_student(tmp_path)
    torch.testing.assert_close(loaded(**hovle.inputs).logits, expected, **ROUNDING)
    options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [60]}
    cached = loaded.generate(**hovle.inputs, **options)
    assert torch.equal(cached, loaded.generate(**hovle.inputs, **options, use_cache=False))


@torch.no_grad()
def test_a_student_whose_query_heads_have_their_own_keys_and_values_comes_back(
    hovle: Any, plugins: Plugins, tmp_path: Path
) -> None:
    model = hovle.convert(None, plugins.registry.get(MixerSpec, "feature_map"), key_value_heads="per_query")
    expected = model(**hovle.inputs).logits
    save_student(model, tmp_path)
    loaded = load_student(tmp_path)
    torch.testing.assert_close(loaded(**hovle.inputs).logits, expected, **ROUNDING)
    assert {tuple(slot.mixer.k_proj.weight.shape) for slot in linearized_sites(loaded)} == {(32, 32)}


@torch.no_grad()
def test_names_in_the_file_are_the_teachers_at_kept_sites_and_hold_no_projection_twice(
    llama: Any, tmp_path: Path
) -> None:
    kept = {name for name in llama.model.state_dict() if ".layers.1." not in name and ".layers.3." not in name}
    save_student(llama.convert(llama.hybrid), tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert kept <= names
    at_site = sorted(name.split("self_attn.")[1] for name in names if ".layers.1.self_attn." in name)
    assert at_site == [
        "mixer.k_proj.weight", "mixer.log_decay", "mixer.q_proj.weight", "mixer.shift", "mixer.v_proj.weight",
        "o_proj.weight",
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decay_parameters_stay_fp32_in_a_student_of_lower_precision(
    llama: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = llama.convert()
    decays = [slot.mixer.log_decay.clone() for slot in linearized_sites(model)]
    save_student(model, tmp_path)
    loaded = load_student(tmp_path, dtype=dtype)
    for slot, decay in zip(linearized_sites(loaded), decays, strict=True):
        assert slot.mixer.q_proj.weight.dtype == slot.o_proj.weight.dtype == dtype
        assert slot.mixer.log_decay.dtype == torch.float32
        assert torch.equal(slot.mixer.log_decay, decay)
    assert loaded.lm_head.weight.dtype == dtype


@torch.no_grad()
def test_a_student_of_lower_precision_is_saved_and_loaded_as_it_is(llama: Any, tmp_path: Path) -> None:
    model = llama.convert().to(torch.bfloat16)
    for slot in linearized_sites(model):
        slot.mixer.log_decay.data = slot.mixer.log_decay.data.float()
    expected = model(**llama.inputs).logits
    save_student(model, tmp_path)
    loaded = load_student(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert linearized_sites(loaded)[0].mixer.log_decay.dtype == torch.float32
    torch.testing.assert_close(loaded(**llama.inputs).logits, expected, **ROUNDING)


def test_buffers_that_a_mixer_does_not_save_come_back_all_the_same(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(strength=0.125), tmp_path)
    for slot in linearized_sites(load_student(tmp_path)):
        assert slot.mixer is not None
        assert torch.equal(slot.mixer.get_buffer("shift"), torch.full((32,), 0.125))


def test_tied_tables_stay_tied(tmp_path: Path, llama: Any) -> None:
    llama.model.config.tie_word_embeddings = True
    llama.model.tie_weights()
    save_student(llama.convert(), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_student(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        torch.testing.assert_close(loaded(**llama.inputs).logits, llama.model(**llama.inputs).logits, **ROUNDING)


def test_a_loaded_student_can_be_trained_whole(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path)
    assert all(parameter.requires_grad for parameter in load_student(tmp_path).parameters())


def test_the_folder_says_what_the_student_is_made_of(llama: Any, tmp_path: Path) -> None:
    llama.model.generation_config.max_new_tokens = 77
    save_student(llama.convert(llama.hybrid, strength=0.25), tmp_path, extra={"recipe": {"seed": 5}})
    described = json.loads((tmp_path / "config.json").read_text())["linearize"]
    assert [entry["site"] for entry in described["mixers"]] == [1, 3]
    assert described["mixers"][0] == {"site": 1, "type": "toy", "options": {"strength": 0.25}, "plugin": "toy 7"}
    assert described["sites"][2]["path"] == "model.layers.2.self_attn"
    assert described["extra"] == {"recipe": {"seed": 5}}
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_new_tokens"] == 77
    card = (tmp_path / "README.md").read_text()
    assert "2 of the 4 attention sites of a `llama` model" in card
    assert '| 3 | language | 3 | toy `{"strength": 0.25}` |' in card
    assert '"seed": 5' in card
    needed = "linearize, the plug-in of a teacher with the model type `llama`, and those of the mixers (toy 7) must be"
    assert needed in card


def test_an_earlier_student_stays_until_the_new_one_is_whole(llama: Any, tmp_path: Path) -> None:
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    folder = tmp_path / "student"
    model = llama.convert()
    save_student(model, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="disk full"):
        save_student(model, folder, processor=Broken(), extra={"changed": True})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    save_student(model, folder, extra={"changed": True})
    assert load_student(folder).config.linearize["extra"] == {"changed": True}
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_the_weights_of_an_earlier_student_are_read_once_to_see_that_they_are_ours(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hashed = llama.convert(), []
    save_student(model, tmp_path / "student")
    file_sha256 = owned_folder.file_sha256
    monkeypatch.setattr(owned_folder, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    save_student(model, tmp_path / "student")
    earlier = [path.name for path in hashed if path.parent == tmp_path / "student"]
    assert sorted(earlier) == sorted(set(earlier))
    assert "model.safetensors" in earlier


def test_a_folder_with_other_files_is_not_replaced(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"files that linearize did not write \(thesis\.tex\)"):
        save_student(llama.convert(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_teachers_checkpoint_is_not_replaced(llama: Any, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="files that linearize did not write"):
        save_student(llama.convert(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_notes_beside_a_student_stay_and_an_edited_card_is_not_overwritten(llama: Any, tmp_path: Path) -> None:
    model = llama.convert()
    save_student(model, tmp_path / "student")
    (tmp_path / "student" / "notes.txt").write_text("mine")
    save_student(model, tmp_path / "student", extra={"changed": True})
    assert (tmp_path / "student" / "notes.txt").read_text() == "mine"
    assert load_student(tmp_path / "student").config.linearize["extra"] == {"changed": True}
    (tmp_path / "student" / "README.md").write_text("my own words")
    with pytest.raises(CheckpointError, match=r"README\.md in .* changed since"):
        save_student(model, tmp_path / "student")


def test_weights_can_be_read_by_whom_the_umask_lets(llama: Any, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        save_student(llama.convert(), tmp_path / "student")
        load_student(tmp_path / "student").save_pretrained(tmp_path / "again")
    finally:
        os.umask(umask)
    weights = [path for path in tmp_path.rglob("*") if path.suffix == ".safetensors"]
    assert [path.stat().st_mode & 0o777 for path in weights] == [0o644, 0o644]


def test_models_that_cannot_be_saved_say_why(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a student"):
        save_student(llama.model, tmp_path / "student")
    convert(llama.model, llama.sites, {0: torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="a Linear was made without build_mixer"):
        save_student(llama.model, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_the_saved_format_has_a_place_for_all_that_a_site_says() -> None:
    plain = AttentionSite(
        index=3, path="layers.3", tower="language", layer=3, cache_index=5, hidden_size=32, num_heads=4,
        num_key_value_heads=2, key_dim=8, value_dim=16,
    )  # fmt: skip
    norm = SiteNorm(kind="layer", over="all", has_bias=True, eps=0.5)
    changed: dict[str, Any] = {
        "qk_norm": norm,
        "v_norm_eps": 0.5,
        "scale": 2.0,
        "window": 7,
        "softcap": 30.0,
        "qkv_clip": 8.0,
        "own_mask": True,
        "sharpens_from": 64,
    }
    for field in dataclasses.fields(AttentionSite):
        default = field.default
        if isinstance(default, (bool, int, str)):
            other = {"rope_style": "interleaved"}.get(field.name, f"{default}_2")
            changed[field.name] = not default if isinstance(default, bool) else 9 if isinstance(default, int) else other
    told = [field.name for field in dataclasses.fields(AttentionSite) if field.default is not dataclasses.MISSING]
    assert sorted(changed) == sorted(told), "a field without a place in SiteEntry, or without a value in this test"
    for site in (plain, dataclasses.replace(plain, **changed)):
        saved = json.dumps(SiteEntry.of(site).model_dump(mode="json"))
        assert SiteEntry.model_validate_json(saved).to_site() == site


@torch.no_grad()
def test_a_student_saved_when_sites_named_their_cache_decodes(llama: Any, tmp_path: Path) -> None:
    """Before, each site said by which keyword its decoder passed the cache; transformers has renamed that since."""
    model = llama.convert(llama.hybrid)
    save_student(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for site in config["linearize"]["sites"]:
        site["cache_argument"] = "past_key_values"
    path.write_text(json.dumps(config))
    decoded = [
        one.generate(**llama.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
        for one in (load_student(tmp_path), model)
    ]
    assert torch.equal(*decoded)


def test_a_student_made_from_a_configuration_alone_has_its_mixers_initialised(llama: Any, tmp_path: Path) -> None:
    save_student(llama.convert(), tmp_path)
    loaded = load_student(tmp_path)
    fresh = type(loaded)(loaded.config)
    assert all(bool(slot.mixer.log_decay.abs().min() > 0) for slot in linearized_sites(fresh))
    assert [name for name, _ in fresh.named_parameters()] == [name for name, _ in loaded.named_parameters()]


def test_saving_and_loading_warn_of_nothing(llama: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_student(llama.convert(), tmp_path)
        load_student(tmp_path)
