"""A tower: transformers' own Llama decoder layers behind one rotary table, at its own place in the cache.

Letters: B batch, T query tokens, S key positions (cached ones included), D model width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from linearize.student.state import CACHE_NAME
from linearize_hovle.rotary import HovleRotaryEmbedding


class Tower(nn.Module):
    """Decoder layers in a row; the final norm, where there is one, belongs to the caller.

    Args:
        config: sizes and rotary embedding of this tower.
        cache_start: slot of the first layer in transformers' Cache.
    """

    def __init__(self, config: LlamaConfig, cache_start: int) -> None:
        super().__init__()
        self.cache_start = cache_start
        self.rotary_emb = HovleRotaryEmbedding(config)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, cache_start + i) for i in range(config.num_hidden_layers))

    def past_length(self, cache: Cache | None) -> int | Tensor:
        """Positions that this tower's layers already hold in the cache; a tensor where its size is fixed."""
        return 0 if cache is None else cast("int | Tensor", cache.get_seq_length(self.cache_start))

    def base_depends_on_length(self) -> bool:
        """Whether some attention of this tower reads rotary tables that change with the length of the sequence."""
        if not self.rotary_emb.is_dynamic:
            return False
        return any(isinstance(part, LlamaAttention) for part in self.modules())

    def base_changes(self, cache: Cache, num_new: int) -> bool:
        """Whether ``num_new`` more positions change what the cached ones were computed with."""
        held = int(self.past_length(cache))
        before, now = self.rotary_emb.base(held), self.rotary_emb.base(held + num_new)
        return before != now and self.base_depends_on_length()

    def run_layers(
        self,
        hidden_BTD: Tensor,
        *,
        mask: Any,
        position_ids_BT: Tensor,
        cache: Cache | None,
        record: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The hidden states after the last layer.

        Args:
            mask: what transformers' create_causal_mask made for the attention implementation in use.
            record: takes the output of each layer in order.
        """
        # A fixed base asks for no length, and a cache of fixed size tells it by a tensor that nobody should wait for.
        length = int(self.past_length(cache)) + hidden_BTD.shape[1] if self.rotary_emb.is_dynamic else 0
        rotary = self.rotary_emb(hidden_BTD, position_ids_BT, length)
        for layer in self.layers:
            hidden_BTD = cast(LlamaDecoderLayer, layer)(
                hidden_BTD,
                attention_mask=mask,
                position_ids=position_ids_BT,
                use_cache=cache is not None,
                position_embeddings=rotary,
                **{CACHE_NAME: cache},
                **kwargs,
            )
            if record is not None:
                record.append(hidden_BTD)
        return hidden_BTD


def positions_from_mask(valid_BS: Tensor, num_last: int) -> Tensor:
    """Positions [B, num_last] of the last tokens: valid tokens count from 0, pads get 1 as in the reference."""
    positions_BS = valid_BS.long().cumsum(dim=-1) - 1
    return positions_BS.masked_fill(valid_BS == 0, 1)[:, -num_last:]


def default_positions(input_ids_BT: Tensor, attention_mask: Tensor | None, past: int | Tensor) -> Tensor:
    """Positions [B, T] from a two-dimensional mask [B, past + T]; without one, counted from ``past``."""
    rows, tokens = input_ids_BT.shape
    if attention_mask is not None and attention_mask.dim() == 2:
        return positions_from_mask(attention_mask, tokens)
    return (torch.arange(tokens, device=input_ids_BT.device) + past)[None].expand(rows, -1)
