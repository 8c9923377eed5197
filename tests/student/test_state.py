"""The recurrent slot in transformers' Cache, and the reading of attention masks."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.models.llama import LlamaConfig

from linearize.student.state import RecurrentStateLayer, passed_cache, state_layer, token_validity


def _filled(batch: int = 3) -> RecurrentStateLayer:
    layer = RecurrentStateLayer()
    layer.put(5, {"s": torch.arange(batch * 2.0).view(batch, 2), "conv": torch.arange(batch).view(batch, 1, 1)})
    return layer


def test_a_slot_counts_tokens_and_sizes_masks_by_them() -> None:
    layer = _filled()
    layer.put(1, layer.states)
    assert layer.get_seq_length() == 6
    assert layer.get_mask_sizes(4) == (10, 0)
    assert layer.get_max_length() == layer.get_max_cache_shape() == -1


def test_a_state_that_is_the_end_of_a_long_prompt_does_not_keep_the_prompt_in_memory() -> None:
    prompt, own = torch.arange(4000.0).view(1, 2000, 2), torch.ones(1, 2)
    layer = RecurrentStateLayer()
    layer.put(2000, {"conv": prompt[:, -3:], "s": own})
    assert torch.equal(layer.states["conv"], prompt[:, -3:])
    assert layer.states["conv"].untyped_storage().nbytes() == 3 * 2 * 4
    assert layer.states["s"] is own


def test_rows_are_reordered_repeated_and_selected_in_every_tensor() -> None:
    layer = _filled()
    layer.reorder_cache(torch.tensor([2, 2, 0]))
    assert layer.states["s"].tolist() == [[4, 5], [4, 5], [0, 1]]
    assert layer.states["conv"].flatten().tolist() == [2, 2, 0]
    layer.batch_repeat_interleave(2)
    assert layer.states["conv"].flatten().tolist() == [2, 2, 2, 2, 0, 0]
    layer.batch_select_indices(torch.tensor([False, True, False, False, True, False]))
    assert layer.states["conv"].flatten().tolist() == [2, 0]
    layer.offload()
    layer.prefetch()
    assert layer.states["s"].tolist() == [[4, 5], [0, 1]]


def test_counts_of_real_tokens_go_with_their_rows() -> None:
    layer = _filled()
    layer.put(2, layer.states, torch.tensor([[True, True], [False, True], [False, False]]))
    layer.reorder_cache(torch.tensor([2, 2, 0]))
    assert layer.progress.real_B is not None
    assert layer.progress.real_B.tolist() == [5, 5, 7]
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 5]))
    assert layer.progress.real_B.tolist() == [5, 7]
    layer.put(3, layer.states)
    assert layer.progress.real_B.tolist() == [8, 10]


def test_a_slot_holds_no_keys_and_lets_decoders_count_them() -> None:
    layer = _filled()
    assert layer.is_initialized
    assert layer.keys is not None
    assert layer.keys.numel() == 0


def test_tensors_keep_their_own_dtypes_whatever_is_done_to_their_rows() -> None:
    dtypes = {"memory": torch.float32, "conv": torch.bfloat16, "angle": torch.float64, "count": torch.int64}
    layer = RecurrentStateLayer()
    layer.put(5, {name: torch.arange(3).to(dtype) for name, dtype in dtypes.items()})
    layer.reorder_cache(torch.tensor([2, 2, 0]))
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 5]))
    layer.offload()
    layer.prefetch()
    assert {name: tensor.dtype for name, tensor in layer.states.items()} == dtypes
    assert {tuple(tensor.tolist()) for tensor in layer.states.values()} == {(2, 0)}
    assert getattr(layer, "dtype", None) is None


def test_reset_forgets_state_and_length() -> None:
    layer = _filled()
    layer.reset()
    assert (layer.states, layer.get_seq_length()) == ({}, 0)


def test_a_recurrence_refuses_to_step_back_and_to_hold_keys() -> None:
    with pytest.raises(RuntimeError, match="asks a recurrent state to forget"):
        _filled().crop(-1)
    with pytest.raises(RuntimeError, match="mixer's state after 5 tokens"):
        _filled().update(torch.zeros(1), torch.zeros(1))


def test_slots_are_swapped_on_first_touch_only() -> None:
    cache = DynamicCache()
    layer = state_layer(cache, 2)
    assert isinstance(cache.layers[2], RecurrentStateLayer)
    assert not isinstance(cache.layers[1], RecurrentStateLayer)
    assert state_layer(cache, 2) is layer


def test_slots_that_cannot_be_swapped_say_why() -> None:
    config = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=1)
    with pytest.raises(RuntimeError, match="made with 2 slots"):
        state_layer(DynamicCache(config=config), 2)
    with pytest.raises(RuntimeError, match="StaticLayer"):
        state_layer(StaticCache(config=config, max_cache_len=8), 0)
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    with pytest.raises(RuntimeError, match="keys and values of 3 tokens"):
        state_layer(cache, 0)


REAL = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()


@pytest.mark.parametrize("seen", [0, 1, 2, 5])
@pytest.mark.parametrize("surplus", [0, 3])
def test_every_kind_of_mask_gives_the_same_validity(seen: int, surplus: int) -> None:
    """Surplus columns on the right are what a cache of fixed size has."""
    covered = torch.nn.functional.pad(REAL, (0, surplus))
    causal = torch.ones(REAL.shape[1], covered.shape[1]).tril().bool()
    square = (causal & covered[:, None])[:, None, seen:]
    added = torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min)
    num_tokens = REAL.shape[1] - seen
    expected = REAL[:, seen:]
    for mask in (covered, covered.long(), square, added, added.bfloat16()):
        valid_BT = token_validity(mask, num_tokens, seen)
        assert valid_BT is not None
        assert valid_BT.dtype == torch.bool
        assert torch.equal(valid_BT, expected)


def test_a_mask_of_a_sliding_window_ends_at_the_last_token() -> None:
    valid_BT = token_validity(torch.tensor([[1, 1, 0]]), 2, seen=40)
    assert valid_BT is not None
    assert valid_BT.tolist() == [[True, False]]


def test_masks_that_cannot_be_read_are_refused() -> None:
    assert token_validity(None, 3, 0) is None
    with pytest.raises(ValueError, match="attention mask of type Tensor"):
        token_validity(torch.ones(2, 3, 4), 3, 0)
    with pytest.raises(ValueError, match="attention mask of type object"):
        token_validity(object(), 3, 0)
    with pytest.raises(ValueError, match="covers 2 tokens, but this call has 3"):
        token_validity(torch.ones(1, 2), 3, 0)


def test_a_cache_is_found_whatever_the_decoder_calls_it() -> None:
    cache = DynamicCache()
    assert passed_cache({"attention_mask": None, "layer_past": cache}) is cache
    assert passed_cache({"cache": cache, "past_key_values": cache, "use_cache": True}) is cache
    assert passed_cache({"cache": None, "position_embeddings": torch.zeros(1)}) is None


def test_two_caches_in_one_call_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 caches, as cache, past_key_values"):
        passed_cache({"cache": DynamicCache(), "past_key_values": DynamicCache()})
