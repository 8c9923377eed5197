"""Pixel shuffle after the embedding tower's layers: no golden data is at hand, these tests state what is promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from linearize_hovle.adapter import attention_sites
from linearize_hovle.density import dense_layout

from linearize.student.state import CACHE_NAME

Make = Callable[..., Any]
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def test_image_tokens_expand_in_place_and_pads_go_to_the_left() -> None:
    image_BT = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    valid_BT = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()
    layout = dense_layout(image_BT, valid_BT, 4)
    assert layout.source_BS.tolist() == [[0, 1, 1, 1, 1, 2, 2, 2, 2, 3], [0, 0, 0, 0, 2, 3, 3, 3, 3, 4]]
    assert layout.valid_BS.sum(dim=1).tolist() == [10, 6]
    assert layout.image_BS.sum(dim=1).tolist() == [8, 4]


@torch.no_grad()
def test_the_embedding_tower_sees_every_patch_and_the_language_tower_every_token(
    make_model: Make, make_inputs: Make
) -> None:
    model = make_model(pixel_shuffle_loc="post")
    inputs = make_inputs(model, [2])
    tokens = inputs["input_ids"].shape[1]
    result = model(**inputs, output_hidden_states=True)
    patches = 2 * 16
    dense = tokens - 2 * model.config.num_image_tokens + patches
    assert [state.shape[1] for state in result.hidden_states] == [dense] * 3 + [tokens] * 2
    assert result.image_hidden_states.shape == (2, model.config.num_image_tokens, 32)


@torch.no_grad()
def test_a_later_tile_changes_nothing_before_it_and_an_earlier_one_everything_after(
    make_model: Make, make_inputs: Make
) -> None:
    model = make_model(pixel_shuffle_loc="post")
    inputs = make_inputs(model, [2])
    before = model(**inputs).logits
    changed = inputs["pixel_values"].clone()
    changed[1] += 1
    after = model(**(inputs | {"pixel_values": changed})).logits
    first = 2 + model.config.num_image_tokens
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.isclose(before[:, first:], after[:, first:]).all(dim=-1).any()


@torch.no_grad()
def test_tokens_equal_a_forward_that_is_put_together_by_hand(make_model: Make, make_inputs: Make) -> None:
    model = make_model(pixel_shuffle_loc="post")
    inputs = make_inputs(model, [1])
    embedding, language = model.embedding_model, model.language_model
    ids_T = inputs["input_ids"][0]
    patches_PD = embedding.vision(inputs["pixel_values"])[0]
    text_TD = embedding.embed_tokens(ids_T)
    rows = torch.cat((text_TD[:2], patches_PD, text_TD[6:]))[None]
    causal = torch.ones(rows.shape[1], rows.shape[1]).tril().bool()[None, None]
    for tower, start in ((embedding, 0), (language, 0)):
        if tower is language:
            tokens = embedding.projection(rows[:, 2:18])
            rows = torch.cat((rows[:, :2], tokens, rows[:, 18:]), dim=1)
            causal = causal[..., : rows.shape[1], : rows.shape[1]]
        rotary = tower.rotary_emb(rows, torch.arange(start, rows.shape[1])[None], rows.shape[1])
        for layer in tower.layers:
            rows = layer(rows, attention_mask=causal, position_embeddings=rotary)
    torch.testing.assert_close(model(**inputs).logits, model.lm_head(language.norm(rows)), **CLOSE)


def test_generation_is_the_same_cached_padded_alone_and_with_beams(make_model: Make, make_inputs: Make) -> None:
    for rope in ({}, {"rope": {"rope_type": "dynamic", "factor": 2.0}, "window": 12}):
        model = make_model(pixel_shuffle_loc="post", **rope)
        inputs = make_inputs(model, [1, 0, 2])
        for beams in (1, 3):
            options = {
                "max_new_tokens": 8,
                "do_sample": False,
                "eos_token_id": None,
                "suppress_tokens": [90],
                "num_beams": beams,
            }
            cached = model.generate(**inputs, **options)
            assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
            if not rope:
                alone = model.generate(
                    input_ids=inputs["input_ids"][1, inputs["attention_mask"][1].bool()][None], **options
                )
                assert torch.equal(alone[0, -8:], cached[1, -8:])


@torch.no_grad()
def test_text_alone_passes_both_towers_at_one_density(make_model: Make, make_inputs: Make) -> None:
    post, pre = make_model(pixel_shuffle_loc="post"), make_model()
    inputs = make_inputs(pre, [0, 0])
    torch.testing.assert_close(post(**inputs).logits, pre(**inputs).logits, **CLOSE)


def test_the_language_tower_takes_the_first_cache_slots(make_model: Make, make_inputs: Make) -> None:
    model = make_model(pixel_shuffle_loc="post")
    sites = attention_sites(model.config)
    assert [site.cache_index for site in sites] == [2, 3, 0, 1]
    assert [model.get_submodule(site.path).layer_idx for site in sites] == [2, 3, 0, 1]
    inputs = make_inputs(model, [1])
    assert model(**inputs, use_cache=True)[CACHE_NAME].get_seq_length() == inputs["input_ids"].shape[1]
