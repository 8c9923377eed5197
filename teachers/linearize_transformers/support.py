"""The families that the tests run on, as tiny configurations; docs/teachers.md is made from this table.

A family that is not here is converted all the same when its modules are understood (see ``sites``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from linearize_transformers.sites import FoundSite

VOCABULARY = 320
PAD, BOS, EOS, TURN_START, TURN_END, IMAGE = range(6)
"""Ids of the tests' tokenizer; a family's own special tokens begin at IMAGE."""

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": TURN_END, "tie_word_embeddings": False,
}  # fmt: skip
SLIDING: dict[str, Any] = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

GEMMA4_TEXT: dict[str, Any] = {"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
               "tie_word_embeddings": True, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
               "vocab_size_per_layer_input": VOCABULARY, **SLIDING}  # fmt: skip

DELTA_NET: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
             "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3}  # fmt: skip

GATED = (
    "its attention multiplies its output by a sigmoid gate of its input, and a mixer that takes its place has none of "
    "the teacher's: the student begins further from its teacher, and distillation has to make up for it"
)
SCALED_BY_POSITION = (
    "its attention sharpens with the position of a token beyond the context that it was first trained with, a linear "
    "site does not"
)
CHUNKED = (
    "its layers with positions see no further back than the beginning of the chunk that a token is in, and those "
    "without sharpen with the position; a linear site does neither"
)
BOTH_WAYS = (
    "its attention reads the {what} in both directions, a linear site only from left to right: the student sees less "
    "at those tokens than the teacher did, and distillation has to make up for it"
)
CLAMPED = (
    "its queries, keys and values are clamped, which only those mixers do too that keep a window of attention: with "
    "others a student begins further from its teacher where they are"
)
CROSS_ATTENTION = (
    "its cross-attention layers are no sites and stay as they are: they read an image's keys and values, whose number "
    "does not grow with the text. Where a token has no image before it, transformers lets them read those of the whole "
    "batch, padding included, so that the logits of a row depend on its neighbours', the teacher's as the student's"
)

PADDED_BEFORE_TOKENIZED = (
    "images of one batch that differ in size are padded to the largest before they are tokenized, and its image "
    "tokenizer's norms and attention see the padding: the tokens of an image depend on its neighbours in the batch"
)

VALUES_OF_NORM_ONE = (
    "the values of a head are divided by their root mean square, which those of most mixers are not: a student begins "
    "further from its teacher, and distillation has to make up for it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model type.

    Attributes:
        config: changes to the defaults of its configuration that make it tiny.
        image: what the tests' chat template writes for an image; "" for a text model.
        tokens: its special tokens, whose ids begin at IMAGE.
        beams_take_images: whether transformers itself decodes with beams when there are images.
        caveats: what a linear site cannot do that its attention does, or what the family does that few would expect.
    """

    model_type: str
    config: dict[str, Any] = field(hash=False)
    image: str = ""
    tokens: tuple[str, ...] = ()
    beams_take_images: bool = True
    caveats: tuple[str, ...] = ()


def text(model_type: str, caveat: str = "", **changes: Any) -> Family:
    """A text LLM of the common shape, with changes."""
    return Family(model_type=model_type, config=TEXT | changes, caveats=(caveat,) if caveat else ())


TEXT_FAMILIES = (
    text("llama"),
    text("qwen2"),
    text("qwen3"),
    text("mistral", sliding_window=6),
    text(
        "ministral3",
        sliding_window=None,
        caveat=SCALED_BY_POSITION,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 512,
        },
    ),
    text(
        "llama4_text",
        intermediate_size_mlp=48,
        num_local_experts=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=512,
        caveat=CHUNKED,
    ),
    text("exaone4", **SLIDING),
    text("olmo", clip_qkv=0.5, num_key_value_heads=4, caveat=CLAMPED),
    text("opt", ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=True),
    text("smollm3", num_hidden_layers=4, no_rope_layer_interval=2, no_rope_layers=None),
    text("olmo2"),
    text("gemma2", query_pre_attn_scalar=8, tie_word_embeddings=True, **SLIDING),
    text("gemma3_text", query_pre_attn_scalar=8, tie_word_embeddings=True, **SLIDING),
    Family(
        model_type="gemma4_text",
        caveats=(VALUES_OF_NORM_ONE,),
        config=TEXT | GEMMA4_TEXT,
    ),
    text("phi3", sliding_window=None),
    text("gpt_neox", rotary_pct=0.5),
    text("cohere", use_qk_norm=True),
    text("cohere2", **SLIDING),
    text("glm4"),
    text("phi", partial_rotary_factor=0.5, qk_layernorm=True),
    text("stablelm", partial_rotary_factor=0.5, use_qkv_bias=True, qk_layernorm=True),
    text("starcoder2", sliding_window=None),
    text("granite", attention_multiplier=0.4, logits_scaling=4.0),
    text("persimmon", partial_rotary_factor=0.5),
    text("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    text("mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    text(
        "qwen3_next",
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        **DELTA_NET,
        partial_rotary_factor=0.5,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        caveat=GATED,
    ),
    text("lfm2", num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "full_attention"]),
)

CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "projection_dim": 16}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "vision_use_head": False}  # fmt: skip
IDEFICS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 16, "patch_size": 4}  # fmt: skip
QWEN = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
           "num_attention_heads": 2, "head_dim": 8, "image_size": 24, "patch_size": 4}  # fmt: skip
SIGLIP2 = {"model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
           "num_attention_heads": 2, "num_patches": 16, "patch_size": 4, "vision_use_head": False}  # fmt: skip
MLLAMA_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_global_layers": 1,
                 "attention_heads": 2, "image_size": 16, "patch_size": 4, "intermediate_layers_indices": [0],
                 "vision_output_dim": 32}  # fmt: skip
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
TILES = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
         *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)))  # fmt: skip
QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VQ: dict[str, Any] = {"embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1, 1],
      "num_res_blocks": 1}  # fmt: skip
CHAMELEON_TOKENS = ("<image>", "<racm3:break>", "<eoss>", *(f"IMGIMG{digit}Z" for digit in "ABCDEFGH"))
EMU3_TOKENS = ("<image>", "<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>",
               *(f"<|visual token {number:06d}|>" for number in range(8)))  # fmt: skip
FUYU_TOKENS = ("|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>")
PHI4_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 64, "crop_size": 64, "patch_size": 2, "image_token_id": IMAGE}  # fmt: skip
PHI4_AUDIO = {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
              "feature_layer": -1, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16,
              "nemo_conv_channels": 16, "audio_token_id": IMAGE + 1}  # fmt: skip
GEMMA4_TOKENS = ("<|image|>", "<|image>", "<image|>", "<|video|>", "<|audio|>", "<|audio>", "<audio|>")
GEMMA4_IDS: dict[str, Any] = {
    "image_token_id": IMAGE, "boi_token_id": IMAGE + 1, "eoi_token_id": IMAGE + 2, "video_token_id": IMAGE + 3,
    "audio_token_id": IMAGE + 4, "boa_token_id": IMAGE + 5, "eoa_token_index": IMAGE + 6, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA4_CAVEATS = (f"in its layers with a window {BOTH_WAYS.format(what='tokens of an image')}", VALUES_OF_NORM_ONE)
QWEN_IDS: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "vision_start_token_id": IMAGE + 2,
            "vision_end_token_id": IMAGE + 3}  # fmt: skip


def vlm(
    model_type: str, text_type: str, vision: dict[str, Any], *, text: dict[str, Any] | None = None,
    image: str = "<image>", tokens: tuple[str, ...] = ("<image>",), caveat: str = "", **changes: Any,
) -> Family:  # fmt: skip
    """A vision-language model around a text model of the common shape."""
    config = {
        "text_config": {"model_type": text_type, **TEXT, **(text or {})},
        "vision_config": vision,
        "tie_word_embeddings": False,
        **changes,
    }
    return Family(model_type=model_type, config=config, image=image, tokens=tokens, caveats=(caveat,) if caveat else ())


VISION_FAMILIES = (
    vlm("smolvlm", "llama", IDEFICS, tokens=TILES, image_token_id=IMAGE, scale_factor=2, tie_word_embeddings=True,
        text={"tie_word_embeddings": True}),
    vlm("idefics3", "llama", IDEFICS, tokens=TILES, image_token_id=IMAGE, scale_factor=2),
    vlm("llava", "llama", CLIP, image_token_id=IMAGE, image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=16),
    vlm("llava_next", "mistral", CLIP, image_token_id=IMAGE, image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_grid_pinpoints=PINPOINTS),
    vlm("llava_onevision", "qwen2", SIGLIP, tokens=("<image>", "<video>"), image_token_id=IMAGE,
        image_token_index=IMAGE, video_token_index=IMAGE + 1, vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_grid_pinpoints=PINPOINTS, vision_aspect_ratio="anyres_max_9"),
    vlm("internvl", "qwen2", IDEFICS | {"image_size": [16, 16], "patch_size": [4, 4]},
        image="<IMG_CONTEXT>", tokens=("<IMG_CONTEXT>", "<img>", "</img>", "<video>"), image_token_id=IMAGE,
        downsample_ratio=0.5, image_seq_length=4, vision_feature_layer=-1),
    vlm("qwen2_vl", "qwen2_vl_text", QWEN | {"embed_dim": 16, "hidden_size": 32}, image=QWEN_IMAGE,
        tokens=QWEN_TOKENS, text={"rope_parameters": MROPE}, **QWEN_IDS),
    vlm("qwen2_5_vl", "qwen2_5_vl_text",
        QWEN | {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "fullatt_block_indexes": [0],
                "window_size": 16},
        image=QWEN_IMAGE, tokens=QWEN_TOKENS, text={"rope_parameters": MROPE}, **QWEN_IDS),
    vlm("qwen3_vl", "qwen3_vl_text",
        QWEN | {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0]},
        image=QWEN_IMAGE, tokens=QWEN_TOKENS, text={"rope_parameters": MROPE}, **QWEN_IDS),
    vlm("qwen3_vl_moe", "qwen3_vl_moe_text",
        QWEN | {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0]},
        image=QWEN_IMAGE, tokens=QWEN_TOKENS, **QWEN_IDS,
        text={"rope_parameters": MROPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    vlm("glm4v", "glm4v_text",
        QWEN | {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "image_size": 16},
        image="<|begin_of_image|><|image|><|end_of_image|>",
        tokens=("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
                "<|end_of_video|>"),
        text={"rope_parameters": MROPE}, image_token_id=IMAGE, video_token_id=IMAGE + 1, image_start_token_id=IMAGE + 2,
        image_end_token_id=IMAGE + 3, video_start_token_id=IMAGE + 4, video_end_token_id=IMAGE + 5),
    vlm("aya_vision", "cohere2", SIGLIP, text=SLIDING, image_token_index=IMAGE, downsample_factor=2,
        tokens=("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE",
                "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5)))),
    vlm("ovis2", "qwen2", IDEFICS | {"vocab_size": 32, "hidden_stride": 2},
        tokens=("<IMG_ATOM>", "<image>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        image_token_id=IMAGE, visual_indicator_token_ids=[IMAGE + 2 + number for number in range(5)],
        vocab_size=VOCABULARY, hidden_size=32),
    vlm("deepseek_vl", "llama", SIGLIP, image_token_id=IMAGE),
    vlm("janus", "llama", IDEFICS | {"projection_dim": 32, "depth": 1, "num_image_tokens": 16}, image_token_id=IMAGE,
        tokens=("<image>", "<begin_of_image>", "<end_of_image>"),
        vq_config={"embed_dim": 4, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32,
                   "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4, "projection_dim": 32,
                   "image_token_embed_dim": 32}),
    vlm("gemma3", "gemma3_text", SIGLIP, image="<start_of_image>", tie_word_embeddings=True,
        text={"query_pre_attn_scalar": 8, "tie_word_embeddings": True, **SLIDING},
        tokens=("<image_soft_token>", "<start_of_image>", "<end_of_image>"), image_token_index=IMAGE,
        boi_token_index=IMAGE + 1, eoi_token_index=IMAGE + 2, mm_tokens_per_image=4,
        caveat=BOTH_WAYS.format(what="tokens of an image")),
    Family(model_type="phi4_multimodal", image="<|endoftext10|>", tokens=("<|endoftext10|>", "<|endoftext11|>"),
           caveats=(
               "the published checkpoint keeps LoRA adapters for images and speech beside its weights: name one in "
               "teacher.adapters, as [\"vision-lora\"], and it is merged into them, for answers without an image, too",
           ),
           config=TEXT | {"vision_config": PHI4_VISION, "audio_config": PHI4_AUDIO,
                          "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                              "partial_rotary_factor": 0.5}}),
    Family(model_type="fuyu", image="|SPEAKER|", tokens=FUYU_TOKENS, beams_take_images=False,
           caveats=(
               "no beam search over images: transformers 5.23 does not repeat its patches for each beam and stops",
           ),
           config={"text_config": TEXT | {"model_type": "persimmon", "partial_rotary_factor": 0.5},
                   "hidden_size": 32, "patch_size": 8, "image_token_id": IMAGE, "tie_word_embeddings": False}),
    Family(model_type="gemma4_unified", image="<|image|>", tokens=GEMMA4_TOKENS,
           caveats=GEMMA4_CAVEATS,
           config={"text_config": TEXT | GEMMA4_TEXT,
                   "vision_config": {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 16,
                                     "mm_posemb_size": 80, "output_proj_dims": 16},
                   "audio_config": {"audio_embed_dim": 16}, **GEMMA4_IDS}),
    Family(model_type="gemma4", image="<|image|>", tokens=GEMMA4_TOKENS, caveats=GEMMA4_CAVEATS,
           config={"text_config": TEXT | GEMMA4_TEXT | {"use_bidirectional_attention": "vision"},
                   "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8,
                                     "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 2,
                                     "pooling_kernel_size": 2, "position_embedding_size": 80},
                   "audio_config": None, **GEMMA4_IDS}),
    Family(model_type="chameleon", image="<image>", tokens=CHAMELEON_TOKENS,
           config=TEXT | {"vq_config": VQ | {"num_embeddings": 8},
                          "vocabulary_map": {token: IMAGE + number for number, token in enumerate(CHAMELEON_TOKENS)}}),
    Family(model_type="emu3", image="<image>", tokens=EMU3_TOKENS, caveats=(PADDED_BEFORE_TOKENIZED,),
           config={"text_config": TEXT, "tie_word_embeddings": False,
                   "vq_config": VQ | {"codebook_size": 8, "channel_multiplier": [1, 1, 1, 1], "hidden_size": 32,
                                      "temporal_downsample_factor": 2},
                   "vocabulary_map": {token: IMAGE + number for number, token in enumerate(EMU3_TOKENS)}}),
    vlm("mistral3", "mistral", PIXTRAL, image="[IMG]", tokens=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        image_token_index=IMAGE, spatial_merge_size=2, text={"sliding_window": None}),
    vlm("cohere2_vision", "cohere2", SIGLIP, text=SLIDING, image="<|IMG_PATCH|>", image_token_id=IMAGE,
        tokens=("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"),
        alignment_intermediate_size=32),
    vlm("lfm2_vl", "lfm2", SIGLIP2, image_token_id=IMAGE, projector_hidden_size=16,
        tokens=("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
                *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5))),
        text={"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
    vlm("qwen3_5", "qwen3_5_text",
        QWEN | {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "num_position_embeddings": 16},
        image=QWEN_IMAGE, tokens=QWEN_TOKENS, **QWEN_IDS, caveat=GATED,
        text={"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2, **DELTA_NET,
              "rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}),
    vlm("paligemma", "gemma2", SIGLIP, image_token_index=IMAGE, tie_word_embeddings=True, projection_dim=32,
        hidden_size=32, vocab_size=VOCABULARY,
        text={"query_pre_attn_scalar": 8, "tie_word_embeddings": True, **SLIDING},
        caveat=BOTH_WAYS.format(what="prompt up to its first answer, images and question,")),
    vlm("mllama", "mllama_text_model", MLLAMA_VISION, image_token_index=IMAGE,
        text={"num_hidden_layers": 4, "cross_attention_layers": [1]}, caveat=CROSS_ATTENTION),
)  # fmt: skip
FAMILIES = (*TEXT_FAMILIES, *VISION_FAMILIES)

OWN_MASK = frozenset({"gemma3", "gemma4", "gemma4_unified", "paligemma"})
"""Model types whose tokens see some that come after them."""

PUBLISHED_PROMPTS = {
    "paligemma": (
        "{% for m in messages %}{% for p in m['content'] if p['type'] == 'image' %}<image>{% endfor %}"
        "{% if loop.first %}{{ bos_token }}{% endif %}"
        "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
        "{% if m['role'] == 'user' %}{{ '\\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "fuyu": (
        "{% for m in messages %}{% for p in m['content'] if p['type'] == 'image' %}|SPEAKER|{% endfor %}"
        "{% if loop.first %}<s>{% endif %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
        "{% if m['role'] == 'user' %}<0x04>{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "chameleon": (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
        "{% if m['role'] == 'user' %}{{ sep_token }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Model types whose checkpoints bring no chat template -> one that writes a question as their processor does."""

UNTESTED = {
    "llama4": "its image processor gives pixels in bfloat16, and its vision tower takes none of another dtype than its "
    "own, so that `run.dtype` has to be bfloat16, which these tests do not try with images; its text model is tested",
    "falcon_h1": "refused: attention and Mamba-2 work side by side in each layer and share one slot of the cache",
}
"""Model types that somebody may look for -> why they are not in the table."""


def caveats(config: Any, found: Iterable[FoundSite]) -> list[str]:
    """What to tell before a model of this configuration, with these sites, is converted."""
    found = list(found)
    types = (config.model_type, config.get_text_config(decoder=True).model_type)
    told = [caveat for family in FAMILIES if family.model_type in types for caveat in family.caveats]
    if any(one.form.gate_in_query for one in found):
        told.append(GATED)
    if any(one.site.qkv_clip is not None for one in found):
        told.append(CLAMPED)
    if any(one.site.sharpens_from is not None for one in found) and not {SCALED_BY_POSITION, CHUNKED} & set(told):
        told.append(SCALED_BY_POSITION)
    if any(one.site.own_mask for one in found) and not told:
        told.append(CHUNKED)
    return [f"'{config.model_type}': {caveat}" for caveat in dict.fromkeys(told)]
