"""The model: against a plain reference, in batches, with and without cache, saved and loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import linearize_hovle.registration  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from linearize_hovle.checkpoint import published_state
from linearize_hovle.modeling import HovleForConditionalGeneration
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from linearize.student.state import CACHE_NAME
from linearize.testing.numbers import ROUNDING

Make = Callable[..., Any]

# Two ways to sum a few hundred float32 products.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def plain_rotation(length: int, positions_T: Tensor, width: int, section: dict[str, Any]) -> tuple[Tensor, Tensor]:
    base, scaling = section["rope_theta"], section["rope_scaling"] or {}
    if scaling.get("type") == "dynamic" and length > section["max_position_embeddings"]:
        growth = scaling["factor"] * length / section["max_position_embeddings"] - (scaling["factor"] - 1)
        base = base * growth ** (width / (width - 2))
    slow = scaling["factor"] if scaling.get("type") == "linear" else 1.0
    angle = torch.tensor(
        [[p / slow / base ** (2 * (i % (width // 2)) / width) for i in range(width)] for p in positions_T.tolist()]
    )
    return angle.cos(), angle.sin()


def plain_layer(x_TD: Tensor, keep_T: Tensor, length: int, s: dict[str, Tensor], section: dict[str, Any]) -> Tensor:
    """One layer on one row from published tensors, head by head and query by query."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + section["rms_norm_eps"]).sqrt() * weight

    heads, groups = section["num_attention_heads"], section["num_key_value_heads"]
    width, per_group = section["hidden_size"] // heads, heads // groups
    fused = F.linear(norm(x_TD, s["attention_norm.weight"]), s["attention.wqkv.weight"], s.get("attention.wqkv.bias"))
    positions_T = (keep_T.long().cumsum(0) - 1).masked_fill(~keep_T, 1)
    cos, sin = plain_rotation(length, positions_T, width, section)

    def rotate(x_TK: Tensor) -> Tensor:
        half = width // 2
        return x_TK * cos + torch.cat((-x_TK[:, half:], x_TK[:, :half]), -1) * sin

    mixed = torch.zeros(len(x_TD), heads, width)
    for head in range(heads):
        rows = fused.view(len(x_TD), groups, per_group + 2, width)[:, head // per_group]
        query, key, value = rotate(rows[:, head % per_group]), rotate(rows[:, -2]), rows[:, -1]
        for t in range(len(x_TD)):
            seen = [u for u in range(t + 1) if keep_T[u]]
            if seen:
                weight = torch.stack([query[t] @ key[u] / math.sqrt(width) for u in seen]).softmax(0)
                mixed[t, head] = sum(w * value[u] for w, u in zip(weight, seen, strict=True))
    x_TD = x_TD + F.linear(mixed.flatten(1), s["attention.wo.weight"], s.get("attention.wo.bias"))
    h = norm(x_TD, s["ffn_norm.weight"])
    gate, up = h @ s["feed_forward.w1.weight"].T, h @ s["feed_forward.w3.weight"].T
    return x_TD + (F.silu(gate) * up) @ s["feed_forward.w2.weight"].T


def plain_logits(model: HovleForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of every row from the published tensors, without transformers; text rows only."""
    config, state = published_state(model)
    length = inputs["input_ids"].shape[1]
    rows = []
    for ids_T, keep_T in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        x_TD = state["embedding_model.llm_text_embeddings.weight"][ids_T]
        towers = (("embedding_model.encoder", "embedding_config"), ("language_model.model.layers", "llm_config"))
        for prefix, section in towers:
            for layer in range(config[section]["num_hidden_layers"]):
                start = f"{prefix}.{layer}."
                tensors = {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}
                x_TD = plain_layer(x_TD, keep_T, length, tensors, config[section])
        scale = (x_TD.square().mean(-1, keepdim=True) + config["llm_config"]["rms_norm_eps"]).rsqrt()
        rows.append(
            (x_TD * scale * state["language_model.model.norm.weight"]) @ state["language_model.output.weight"].T
        )
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope": {"rope_type": "linear", "factor": 2.0}},
        {"rope": {"rope_type": "dynamic", "factor": 2.0}, "window": 7},
        {"attention_bias": True},
    ],
    ids=["plain", "linear-rope", "dynamic-rope", "biases"],
)
def test_logits_of_padded_rows_equal_a_loop_over_published_tensors(
    make_model: Make, make_inputs: Make, changes: dict[str, Any], left: bool
) -> None:
    model = make_model(**changes)
    inputs = make_inputs(model, [0, 0], left=left, text=11)
    inputs["attention_mask"][1, : 3 if left else 11] = 1
    inputs["attention_mask"][1, slice(0, 3) if left else slice(8, 11)] = 0
    keep_BT = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[keep_BT], plain_logits(model, inputs)[keep_BT], **CLOSE)


@torch.no_grad()
def test_image_tokens_attend_causally_like_text(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    inputs = make_inputs(model, [2])
    before = model(**inputs).logits
    changed = inputs["pixel_values"].clone()
    changed[1] += 1
    after = model(**(inputs | {"pixel_values": changed})).logits
    first = 2 + model.config.num_image_tokens
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.isclose(before[:, first:], after[:, first:]).all(dim=-1).any()


@torch.no_grad()
def test_a_larger_tile_resizes_the_position_table(make_model: Make) -> None:
    vision = make_model().embedding_model.vision
    pixels = torch.randn(1, 3, 42, 28)
    wanted = F.interpolate(
        vision.position_embedding[:, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2), (6, 4), mode="bicubic"
    )
    without_table = vision.patch_embedding(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(vision(pixels) - without_table, wanted.flatten(2).transpose(1, 2))


def test_a_saved_model_loads_with_the_auto_classes_bit_for_bit(
    make_model: Make, make_inputs: Make, tmp_path: Path
) -> None:
    model = make_model(rope={"rope_type": "dynamic", "factor": 2.0}, window=8)
    inputs = make_inputs(model, [1, 2])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(again, HovleForConditionalGeneration)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "hovle"
    torch.testing.assert_close(model(**inputs).logits, again(**inputs).logits, **ROUNDING)


@torch.no_grad()
def test_rotary_tables_stay_exact_in_a_half_precision_model(make_model: Make) -> None:
    rotary = make_model().to(torch.bfloat16).language_model.rotary_emb
    positions = torch.tensor([[300, 301]])
    cos, _ = rotary(torch.zeros(1, 2, 32), positions, 302)
    angle = 301.0 / 300.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    torch.testing.assert_close(cos[0, 1, :4].double(), angle.cos(), atol=1e-4, rtol=0)


ROPES = {"plain": {}, "dynamic": {"rope": {"rope_type": "dynamic", "factor": 2.0}, "window": 9}}


@pytest.mark.parametrize("changes", ROPES.values(), ids=ROPES)
def test_cached_greedy_equals_uncached_greedy_with_images_and_left_pads(
    make_model: Make, make_inputs: Make, changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    inputs = make_inputs(model, [1, 0, 2])
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "suppress_tokens": [90]}
    cached = model.generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    assert len(set(cached[:, -10:].flatten().tolist())) > 5


@torch.no_grad()
@pytest.mark.parametrize("changes", ROPES.values(), ids=ROPES)
def test_feeding_a_prompt_in_two_parts_gives_the_logits_of_one(
    make_model: Make, make_inputs: Make, changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    inputs = make_inputs(model, [0, 0], text=12)
    inputs["attention_mask"][1, :4] = 0
    whole = model(**inputs).logits
    cache = DynamicCache()
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    model(input_ids=ids_BT[:, :5], attention_mask=mask_BT[:, :5], use_cache=True, **{CACHE_NAME: cache})
    rest = model(input_ids=ids_BT[:, 5:], attention_mask=mask_BT, use_cache=True, **{CACHE_NAME: cache}).logits
    torch.testing.assert_close(rest, whole[:, 5:], **CLOSE)


@torch.no_grad()
def test_the_cache_may_have_the_name_of_any_release(make_model: Make, make_inputs: Make) -> None:
    """Code for transformers before 5.24 says past_key_values, later code cache."""
    model = make_model()
    inputs = make_inputs(model, [0])
    for name in ("cache", "past_key_values"):
        cache = DynamicCache()
        output = model(**inputs, use_cache=True, **{name: cache})
        assert output[CACHE_NAME] is cache
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_a_left_padded_batch_generates_what_each_row_generates_alone(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    tiles = [1, 0, 2]
    together = make_inputs(model, tiles)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "suppress_tokens": [90]}
    batch = model.generate(**together, **options)[:, -8:]
    taken = 0
    for row, count in enumerate(tiles):
        keep = together["attention_mask"][row].bool()
        alone = {"input_ids": together["input_ids"][row, keep][None]}
        if count:
            alone["pixel_values"] = together["pixel_values"][taken : taken + count]
        taken += count
        assert torch.equal(model.generate(**alone, **options)[0, -8:], batch[row])


@pytest.mark.parametrize("changes", ROPES.values(), ids=ROPES)
def test_beams_see_the_tiles_of_their_own_row(make_model: Make, make_inputs: Make, changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "eos_token_id": None, "suppress_tokens": [90]}
    both = make_inputs(model, [2, 1])
    cached = model.generate(**both, **options)
    assert torch.equal(cached, model.generate(**both, **options, use_cache=False))
    first = {"input_ids": both["input_ids"][:1], "pixel_values": both["pixel_values"][:2]}
    assert torch.equal(model.generate(**first, **options)[0, -6:], cached[0, -6:])


def test_samples_of_one_seed_repeat_and_differ_from_another(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    inputs = make_inputs(model, [2, 1])

    def sample(seed: int, use_cache: bool = True) -> Tensor:
        torch.manual_seed(seed)
        options = {
            "max_new_tokens": 6,
            "do_sample": True,
            "num_return_sequences": 2,
            "eos_token_id": None,
            "suppress_tokens": [90],
        }
        return model.generate(**inputs, **options, use_cache=use_cache)

    assert sample(1).shape[0] == 4
    assert torch.equal(sample(1), sample(1, use_cache=False))
    assert not torch.equal(sample(1), sample(2))


def test_generation_with_a_static_cache_equals_the_default(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    inputs = make_inputs(model, [1, 2])
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "suppress_tokens": [90],
        "disable_compile": True,
    }
    static = model.generate(**inputs, **options, cache_implementation="static")
    assert torch.equal(static, model.generate(**inputs, **options))


def test_a_static_cache_is_refused_where_the_rotary_base_follows_the_length(
    make_model: Make, make_inputs: Make
) -> None:
    model = make_model(**ROPES["dynamic"])
    options = {"max_new_tokens": 2, "do_sample": False, "disable_compile": True}
    with pytest.raises(ValueError, match="dynamic NTK"):
        model.generate(**make_inputs(model, [1]), **options, cache_implementation="static")


@torch.no_grad()
def test_inexact_dynamic_rope_keeps_old_keys_and_differs_only_beyond_the_window(
    make_model: Make, make_inputs: Make
) -> None:
    model = make_model(rope={"rope_type": "dynamic", "factor": 2.0}, window=10)
    model.config.exact_dynamic_rope = False
    ids_BT = make_inputs(model, [0], text=14)["input_ids"]
    for length, is_same in ((10, True), (14, False)):
        first = model(input_ids=ids_BT[:, : length - 1], use_cache=True)
        last = model(input_ids=ids_BT[:, length - 1 : length], use_cache=True, **{CACHE_NAME: first[CACHE_NAME]})
        whole = model(input_ids=ids_BT[:, :length])
        difference = float((last.logits[:, -1] - whole.logits[:, -1]).abs().max())
        assert (difference < 1e-3) == is_same, difference


@torch.no_grad()
def test_a_long_forward_leaves_no_trace_in_the_next_short_one(make_model: Make, make_inputs: Make) -> None:
    model = make_model(**ROPES["dynamic"])
    short = make_inputs(model, [0], text=6)
    before = model(**short).logits
    model(**make_inputs(model, [0], text=40))
    assert torch.equal(model(**short).logits, before)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_implementation_gives_the_same_logits(
    make_model: Make, make_inputs: Make, implementation: str
) -> None:
    model = make_model()
    inputs = make_inputs(model, [1, 2])
    keep_BT = inputs["attention_mask"].bool()
    before = model(**inputs).logits[keep_BT]
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(**inputs).logits[keep_BT], before, **CLOSE)


def test_replaced_attention_is_called_the_way_transformers_calls_its_own(make_model: Make, make_inputs: Make) -> None:
    calls: list[dict[str, Any]] = []

    class Recorder(nn.Module):
        def forward(self, **kwargs: Any) -> tuple[Tensor, None]:
            calls.append(kwargs)
            return torch.zeros_like(kwargs["hidden_states"]), None

    for changes in ROPES.values():
        model = make_model(**changes)
        for tower in (model.embedding_model, model.language_model):
            tower.layers[1].self_attn = Recorder()
        model(**make_inputs(model, [1, 2]))
        names = {"hidden_states", "attention_mask", "position_embeddings", CACHE_NAME}
        assert len(calls) == 2
        assert all(names <= call.keys() for call in calls)
        calls.clear()


def test_loss_logits_to_keep_and_hidden_states_agree_with_a_plain_forward(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    inputs = make_inputs(model, [1])
    labels_BT = inputs["input_ids"].clone()
    labels_BT[:, :3] = -100
    result = model(**inputs, labels=labels_BT, output_hidden_states=True)
    expected = F.cross_entropy(result.logits[0, :-1], labels_BT[0, 1:])
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, result.logits[:, -2:])
    assert len(result.hidden_states) == 1 + 4
    torch.testing.assert_close(model.lm_head(result.hidden_states[-1]), result.logits)


def test_gradient_checkpointing_changes_no_gradient(make_model: Make, make_inputs: Make) -> None:
    model = make_model().train()
    inputs = make_inputs(model, [1])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_image_places_and_tiles_that_do_not_match_are_named(make_model: Make, make_inputs: Make) -> None:
    model = make_model()
    inputs = make_inputs(model, [1])
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"4 image tokens, but 2 tiles give 8; .* leave out the pixels"):
        model(**inputs)
