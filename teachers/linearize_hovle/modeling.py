"""HoVLE as a transformers model: an embedding tower and a language tower over one cache.

Every token, of text or of an image, passes both towers causally, at every decoding step too. A tile's patches become
rows of the embedding tower's input in place of its image tokens. With ``pixel_shuffle_loc = "post"`` the embedding
tower runs over all patches and the shuffle comes after it (see ``density``).

Cache slots: the embedding tower's layers come first, the language tower's follow. In "post" models the language tower
comes first, because transformers takes the length of slot 0 for the length of the sequence, and the embedding tower's
is longer there. Behind the layers' slots lie two that only some models use: the input rows of all tokens (``history``)
and the padding mask at dense density, both kept as layers of the cache so that beams reorder them too.

Dynamic NTK scaling: a cached decode gives what a full forward gives. Within the window the base is fixed and the cache
is exact. Beyond it every new token changes the base, and with it the hidden states of all tokens before; then both
towers run over the whole sequence again, from the history. With ``config.exact_dynamic_rope = False`` old keys and
states stay at the base of their time, as in the reference: faster, but another result than a full forward.

Letters: B batch, T tokens, D model width, I tiles, P patches per tile, G image tokens per tile, R rows per token (1, or
in "post" models the patches behind an image token), S dense slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from linearize.student.state import CACHE_NAME, passed_cache
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.density import dense_layout
from linearize_hovle.tower import Tower, default_positions, positions_from_mask
from linearize_hovle.vision import HovleVisionEmbedding, PixelShuffleProjection

HISTORY, DENSE_MASK = 0, 1
"""Slots of the cache behind the layers' own."""


@dataclass
class HovleOutput(CausalLMOutputWithPast):
    """What a forward returns.

    Attributes:
        loss: next-token cross entropy, when labels were given.
        logits: [B, T, vocabulary], or fewer positions with ``logits_to_keep``.
        cache: the one over both towers; ``past_key_values`` with transformers before 5.24.
        hidden_states: the embedding tower's input, each layer's output through both towers in order, the last one after
            the final norm. In "post" models the embedding tower's entries have one position per patch.
        attentions: None.
        image_hidden_states: [I, G, D], the image tokens after projection.
    """

    image_hidden_states: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TowerInputs:
    """What enters the towers.

    Attributes:
        rows_BTRD: text rows and image rows; R is 1 but in "post" models, where an image token holds its R patches.
        patches_BT: patches in the tile that an image token belongs to; 0 at every other token.
        position_ids_BT: of the language tower.
        attention_mask: [B, cached + T], or None.
        tokens_IGD: image tokens, where they are known before the towers run.
    """

    rows_BTRD: Tensor
    patches_BT: Tensor
    position_ids_BT: Tensor
    attention_mask: Tensor | None
    tokens_IGD: Tensor | None = None


class EmbeddingModel(Tower):
    """Text table, vision part and the first tower."""

    def __init__(self, config: HovleConfig) -> None:
        embedding = config.embedding
        super().__init__(embedding, config.language.num_hidden_layers if embedding.shuffles_after_layers else 0)
        self.embed_tokens = nn.Embedding(embedding.vocab_size, embedding.hidden_size)
        self.vision = HovleVisionEmbedding(embedding)
        self.projection = PixelShuffleProjection(embedding) if embedding.use_pixel_shuffle_proj else None

    def project(self, patches_IPD: Tensor) -> Tensor:
        """Image tokens [I, G, D] of patches."""
        tokens_IGD: Tensor = patches_IPD if self.projection is None else self.projection(patches_IPD)
        return tokens_IGD


class LanguageModel(Tower):
    """The second tower and its final norm. Its own text table is part of the checkpoint, but nothing reads it."""

    def __init__(self, config: HovleConfig) -> None:
        language = config.language
        super().__init__(language, 0 if config.embedding.shuffles_after_layers else config.embedding.num_hidden_layers)
        self.embed_tokens = nn.Embedding(language.vocab_size, language.hidden_size)
        self.norm = LlamaRMSNorm(language.hidden_size, eps=language.rms_norm_eps)


class HovleForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """HoVLE with its language head; ``generate()`` works with left-padded batches, beams and sampling."""

    config_class = HovleConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    def __init__(self, config: HovleConfig) -> None:
        super().__init__(config)
        for tower in (config.embedding, config.language):
            # The towers are plain modules: nobody else tells their configurations which attention was chosen, and
            # without one the causal mask would be left out.
            if tower._attn_implementation is None:
                tower._attn_implementation = self.config._attn_implementation
        self.embedding_model = EmbeddingModel(config)
        self.language_model = LanguageModel(config)
        self.lm_head = nn.Linear(config.language.hidden_size, config.language.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The text table that the model reads, the embedding module's."""
        return self.embedding_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the text table that the model reads."""
        self.embedding_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The language head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the language head."""
        self.lm_head = new_embeddings

    def get_decoder(self, modality: str | None = None) -> LanguageModel:
        """The language tower."""
        return self.language_model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HovleVisionEmbedding):
            std = self.config.language.initializer_range
            init.normal_(module.class_embedding, mean=0.0, std=std)
            init.normal_(module.position_embedding, mean=0.0, std=std)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> HovleOutput | tuple[Any, ...]:
        """One pass of both towers.

        Args:
            input_ids: [B, T]; image tokens stand where ``pixel_values`` go, all rows' tiles in order.
            attention_mask: [B, cached + T], 0 at pads on either side; or a mask that transformers prepared.
            position_ids: [B, T]; from the mask when None.
            cache: of the tokens before; ``past_key_values`` is its name in transformers before 5.24.
            pixel_values: [I, C, H, W] of all rows in row order; None for text, and for decoding steps.
            labels: [B, T] with -100 where no loss is due; shifted inside.
            logits_to_keep: number of last positions that get logits (0 means all), or their indices.

        Raises:
            ValueError: no input_ids; image tokens and tiles that do not match in number; or a cache of fixed size for a
                model whose towers cannot use one.
        """
        if input_ids is None:
            raise ValueError(
                "HoVLE needs input_ids: image rows are placed by the image token's id, embeddings alone do not do"
            )
        if use_cache is None:
            use_cache = self.config.language.use_cache and not self.training
        cache = passed_cache({"cache": cache, "past_key_values": past_key_values}) if use_cache else None
        if use_cache and cache is None:
            cache = DynamicCache()
        self._refuse_fixed_size(cache, attention_mask)
        if position_ids is None:
            position_ids = default_positions(input_ids, attention_mask, self.language_model.past_length(cache))
        record: list[Tensor] | None = [] if (output_hidden_states or self.config.output_hidden_states) else None
        inputs = self._embed(input_ids, attention_mask, position_ids, pixel_values)
        follows_length = any(tower.base_depends_on_length() for tower in (self.embedding_model, self.language_model))
        if cache is not None and follows_length and self.config.exact_dynamic_rope:
            hidden_BTD, image_IGD = self._run_with_history(inputs, cache, record, **kwargs)
        else:
            hidden_BTD, image_IGD = self._run_towers(inputs, cache, record, **kwargs)

        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.lm_head(hidden_BTD if isinstance(kept, int) else hidden_BTD[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.language.vocab_size)
        output = HovleOutput(
            loss=loss,
            logits=logits,
            hidden_states=None if record is None else tuple(record),
            image_hidden_states=image_IGD,
            **{CACHE_NAME: cache},
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def _refuse_fixed_size(self, cache: Cache | None, attention_mask: Tensor | None) -> None:
        fixed = cache is not None and cache.is_compileable
        prepared = attention_mask is not None and attention_mask.dim() != 2
        if (fixed or prepared) and self.config.needs_extra_slots:
            raise ValueError(
                "this model's rotary base follows the length (dynamic NTK scaling) or its embedding tower runs over "
                "patches (pixel_shuffle_loc 'post'); neither works with a cache of fixed size or a four-dimensional "
                "mask: use the default dynamic cache and a [batch, tokens] mask"
            )

    def _embed(
        self, ids_BT: Tensor, attention_mask: Tensor | None, position_ids_BT: Tensor, pixels_ICHW: Tensor | None
    ) -> TowerInputs:
        """Text rows, with image rows written over the image tokens' in reading order."""
        embedding, is_post = self.embedding_model, self.config.embedding.shuffles_after_layers
        parts = self.config.embedding.shuffle_factor**2 if is_post else 1
        rows_BTRD = embedding.embed_tokens(ids_BT)[:, :, None].expand(-1, -1, parts, -1)
        patches_BT, tokens_IGD = torch.zeros_like(ids_BT), None
        if pixels_ICHW is not None:
            image_BT = ids_BT == self.config.image_token_id
            patches_IPD = embedding.vision(pixels_ICHW)
            tokens_IGD = None if is_post else embedding.project(patches_IPD)
            written = patches_IPD if tokens_IGD is None else tokens_IGD
            wanted, found = int(image_BT.sum()), written.shape[0] * written.shape[1] // parts
            if wanted != found:
                raise ValueError(
                    f"the ids hold {wanted} image tokens, but {len(written)} tiles give {found}; "
                    "prepare text and images with the same processor, and going on with a cache, leave out the pixels "
                    "of images that it has read"
                )
            rows_BTRD = rows_BTRD.masked_scatter(image_BT[..., None, None], written.to(rows_BTRD.dtype))
            patches_BT = image_BT * patches_IPD.shape[1]
        return TowerInputs(rows_BTRD, patches_BT, position_ids_BT, attention_mask, tokens_IGD)

    def _run_towers(
        self, inputs: TowerInputs, cache: Cache | None, record: list[Tensor] | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Both towers and the final norm over tokens behind those in the cache: rows [B, T, D] and image tokens."""
        image_IGD = inputs.tokens_IGD
        passed: dict[str, Any] = {"cache": cache, "record": record, **kwargs}
        if self.config.embedding.shuffles_after_layers:
            hidden_BTD, image_IGD = self._embed_dense(inputs, passed)
            mask = self._mask(self.language_model, hidden_BTD, inputs.attention_mask, inputs.position_ids_BT, cache)
        else:
            hidden_BTD = inputs.rows_BTRD[:, :, 0]
            # The towers attend alike: one mask serves both.
            mask = self._mask(self.embedding_model, hidden_BTD, inputs.attention_mask, inputs.position_ids_BT, cache)
            if record is not None:
                record.append(hidden_BTD)
            hidden_BTD = self.embedding_model.run_layers(
                hidden_BTD, mask=mask, position_ids_BT=inputs.position_ids_BT, **passed
            )
        hidden_BTD = self.language_model.run_layers(
            hidden_BTD, mask=mask, position_ids_BT=inputs.position_ids_BT, **passed
        )
        hidden_BTD = self.language_model.norm(hidden_BTD)
        if record is not None:
            record[-1] = hidden_BTD
        return hidden_BTD, image_IGD

    def _mask(
        self, tower: Tower, hidden_BTD: Tensor, valid: Tensor | None, position_ids_BT: Tensor, cache: Cache | None
    ) -> Any:
        # A tower's own slot tells how many keys there are; None lets transformers pick the first slot that attends.
        slot = tower.cache_start if self.config.embedding.shuffles_after_layers else None
        return create_causal_mask(
            config=self.config.language,
            inputs_embeds=hidden_BTD,
            attention_mask=valid,
            position_ids=position_ids_BT,
            layer_idx=slot,
            **{CACHE_NAME: cache},
        )

    def _embed_dense(self, inputs: TowerInputs, passed: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The embedding tower over patches, then the shuffle: rows [B, T, D] at normal density, and image tokens."""
        cache, record = passed["cache"], passed["record"]
        image_BT = inputs.patches_BT > 0
        valid_BT = torch.ones_like(image_BT)
        if inputs.attention_mask is not None:
            valid_BT = inputs.attention_mask[:, -image_BT.shape[1] :].bool()
        layout = dense_layout(image_BT, valid_BT, inputs.rows_BTRD.shape[2])
        hidden_BSD, valid_BS = layout.to_dense(inputs.rows_BTRD), layout.valid_BS
        if cache is not None:
            # A later step's mask cannot tell where the dense sequence was padded, so the cache keeps it.
            kept = valid_BS[:, None, :, None].to(torch.float32)
            valid_BS = cache.update(kept, kept, self.config.num_layers + DENSE_MASK)[0][:, 0, :, 0] > 0
        position_ids_BS = positions_from_mask(valid_BS, hidden_BSD.shape[1])
        mask = self._mask(self.embedding_model, hidden_BSD, valid_BS, position_ids_BS, cache)
        if record is not None:
            record.append(hidden_BSD)
        hidden_BSD = self.embedding_model.run_layers(hidden_BSD, mask=mask, position_ids_BT=position_ids_BS, **passed)
        if not image_BT.any():
            return layout.to_normal(hidden_BSD, hidden_BSD[layout.image_BS]), None
        patches_IPD = hidden_BSD[layout.image_BS].unflatten(0, (-1, int(inputs.patches_BT.max())))
        tokens_IGD = self.embedding_model.project(patches_IPD)
        return layout.to_normal(hidden_BSD, tokens_IGD), tokens_IGD

    def _run_with_history(
        self, inputs: TowerInputs, cache: Cache, record: list[Tensor] | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As ``_run_towers``, but over the whole sequence again once a rotary base is not what the cache holds."""
        rows_BTRD, slot = inputs.rows_BTRD, self.config.num_layers + HISTORY
        tokens, parts = rows_BTRD.shape[1:3]
        past = self.language_model.past_length(cache)
        facts_BT2 = torch.stack((inputs.position_ids_BT.expand(len(rows_BTRD), -1), inputs.patches_BT), dim=-1)
        # Positions are exact in float32 up to 2^24; as floats they may lie beside the rows in one layer of the cache.
        rows, facts = cache.update(rows_BTRD.flatten(2)[:, None], facts_BT2[:, None].to(torch.float32), slot)
        # In "post" models this is the most that the dense length can be; running again too early changes no result.
        new = tokens * parts
        changes = any(tower.base_changes(cache, new) for tower in (self.embedding_model, self.language_model))
        if not past or not changes:
            return self._run_towers(inputs, cache, record, **kwargs)
        whole = TowerInputs(
            rows[:, 0].unflatten(-1, (parts, -1)),
            facts[:, 0, :, 1].long(),
            facts[:, 0, :, 0].long(),
            inputs.attention_mask,
        )
        fresh = DynamicCache()
        hidden_BTD, _ = self._run_towers(whole, fresh, record, **kwargs)
        for index, layer in enumerate(fresh.layers):
            if index != slot:
                cache.layers[index] = layer
        if record is not None:
            record[:] = [state[:, -tokens:] for state in record]
        return hidden_BTD[:, -tokens:], inputs.tokens_IGD

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats rows for beams and samples; tiles are repeated row by row, since a row may own several or none."""
        pixels = model_kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1:
            assert input_ids is not None
            side = pixels.shape[-1] // self.config.embedding.patch_size // self.config.embedding.shuffle_factor
            tokens_B = (input_ids == self.config.image_token_id).sum(dim=1)
            per_row = pixels.split((tokens_B // side**2).tolist())
            pixels = torch.cat([row for tiles in per_row for row in [tiles] * expand_size])
        expanded_ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if pixels is not None:
            expanded["pixel_values"] = pixels
        return expanded_ids, expanded
