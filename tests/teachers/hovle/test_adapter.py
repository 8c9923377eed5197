"""The teacher adapter on a published folder: sites, weights, batches, answers, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkout import python
from linearize_hovle.adapter import HovleAdapter
from linearize_hovle.config import HovleTeacherConfig

from linearize.errors import CheckpointError
from linearize.protocols.conversation import Conversation, Turn


@pytest.fixture(scope="module")
def adapter(published_folder: Path) -> HovleAdapter:
    return HovleAdapter(HovleTeacherConfig(checkpoint=str(published_folder)))


@pytest.fixture(scope="module")
def model(adapter: HovleAdapter) -> Any:
    return adapter.load(dtype=torch.float32, device="cpu")


def test_sites_run_through_both_towers_in_execution_order(adapter: HovleAdapter, model: Any) -> None:
    sites = adapter.sites()
    assert [site.index for site in sites] == list(range(4))
    assert [(site.tower, site.layer) for site in sites] == [
        ("embedding", 0),
        ("embedding", 1),
        ("language", 0),
        ("language", 1),
    ]
    ran: list[int] = []
    for site in sites:
        attention = model.get_submodule(site.path)
        assert attention.layer_idx == site.cache_index
        attention.register_forward_hook(lambda *_, index=site.index: ran.append(index))
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert ran == [0, 1, 2, 3]


def test_sites_are_known_without_any_weight(published_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((published_folder / "config.json").read_bytes())
    assert len(HovleAdapter(HovleTeacherConfig(checkpoint=str(tmp_path))).sites()) == 4


def test_weights_have_the_documented_shapes_and_compute_the_site_s_projections(
    adapter: HovleAdapter, model: Any
) -> None:
    for site in adapter.sites():
        weights = adapter.weights(model, site)
        keys, values = site.num_key_value_heads * site.key_dim, site.num_key_value_heads * site.value_dim
        assert weights.q.shape == (site.num_heads * site.key_dim, site.hidden_size)
        assert weights.k.shape == (keys, site.hidden_size)
        assert weights.v.shape == (values, site.hidden_size)
        assert weights.o.shape == (site.hidden_size, site.num_heads * site.value_dim)
        assert weights.scale == pytest.approx(site.key_dim**-0.5)
        x = torch.randn(3, site.hidden_size)
        assert torch.equal(F.linear(x, weights.k), model.get_submodule(site.path).k_proj(x))
    assert [adapter.weights(model, site).rope_theta for site in adapter.sites()] == [100.0, 100.0, 300.0, 300.0]


def test_published_prefixes_lead_to_the_published_attention(adapter: HovleAdapter, model: Any) -> None:
    _, state = adapter.to_published(model)
    for site in adapter.sites():
        assert f"{adapter.published_attention_prefix(site)}wqkv.weight" in state
    assert adapter.published_attention_prefix(adapter.sites()[2]) == "language_model.model.layers.0.attention."


def test_a_model_goes_through_the_published_form_unchanged(adapter: HovleAdapter, model: Any) -> None:
    again = adapter.from_published(*adapter.to_published(model))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_generation_stops_at_the_end_of_the_turn_and_decodes_to_text(adapter: HovleAdapter, model: Any) -> None:
    tokenizer = adapter.processor().tokenizer
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    batch = adapter.batch([Conversation(turns=(Turn("how many?", ""),))], for_generation=True)
    ids_BT = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    assert all("<|im_end|>" not in text for text in adapter.decode(ids_BT[:, batch.inputs["input_ids"].shape[1] :]))
    end = tokenizer("two<|im_end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert adapter.decode(end) == ["two"]


def test_training_on_a_batch_uses_exactly_its_inputs(adapter: HovleAdapter, model: Any) -> None:
    batch = adapter.batch([Conversation(turns=(Turn("how many?", "two"),)), Conversation(turns=(Turn("user", "3"),))])
    assert model(**batch.inputs).logits.shape[:2] == batch.loss_mask_BT.shape


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("./no/such/folder", "^checkpoint: there is no folder './no/such/folder'"),
        ("embeded", "there is no folder 'embeded'. Did you mean 'embedded'"),
        ("nothing-here", "Give 'embedded', a folder with a HoVLE's config.json, or a hub id"),
    ],
)
def test_a_checkpoint_that_does_not_exist_says_what_could_be_given(checkpoint: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        HovleAdapter(HovleTeacherConfig(checkpoint=checkpoint)).sites()


def test_an_embedded_model_that_is_not_installed_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("linearize_hovle.adapter.EMBEDDED", tmp_path)
    with pytest.raises(CheckpointError, match="the embedded HoVLE was asked for"):
        HovleAdapter(HovleTeacherConfig()).sites()


def test_a_folder_without_tokenizer_says_so(published_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((published_folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.model"):
        HovleAdapter(HovleTeacherConfig(checkpoint=str(tmp_path))).processor()


def test_registering_the_plug_in_imports_no_torch() -> None:
    code = (
        "import sys, linearize_hovle\n"
        "specs = []\n"
        "linearize_hovle.linearize_register(register=specs.append)\n"
        "assert [spec.name for spec in specs] == ['hovle']\n"
        "assert specs[0].config_class().__name__ == 'HovleTeacherConfig'\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
