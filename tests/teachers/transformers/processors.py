"""Real processor classes of the families with images, around the tests' tokenizer and images of a few pixels.

Video processors need torchvision, which a CPU installation of these tests lacks, and a still image never reaches them:
``StillsOnly`` stands in for them. Image processors that need it get what they call from ``without_torchvision``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import transformers
import transformers.models.smolvlm.processing_smolvlm as smolvlm
import without_torchvision
from checkpoints import make_tokenizer
from linearize_transformers.support import Family
from transformers.models.auto import video_processing_auto
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor


class StillsOnly(BaseVideoProcessor):
    """A video processor that holds the options which processors ask of theirs, and what AutoVideoProcessor finds."""

    merge_size = 2
    temporal_patch_size = 2

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> StillsOnly:
        del args, kwargs
        return cls()


video_processing_auto.AutoVideoProcessor.from_pretrained = StillsOnly.from_pretrained
if not is_torchvision_available():
    for package in ("cohere2_vision", "gemma4", "gemma4_unified", "lfm2_vl", "phi4_multimodal", "pixtral"):
        without_torchvision.bring(package, f"image_processing_{package}", f"processing_{package}")
    transformers.VideoProcessorMixin = transformers.BaseVideoProcessor = BaseVideoProcessor  # since 5.23, and before
# SmolVLM's processor spells out the number of video frames and does not start without the package that does it.
smolvlm.num2words = smolvlm.num2words or str


def _pil(name: str, **options: Any) -> Any:
    return _without_torchvision(f"{name}ImageProcessorPil")(**options)


def _without_torchvision(name: str) -> Any:
    """An image processor for PIL, put where transformers looks for it.

    Some releases, 5.17 among them, hide those of SmolVLM, Idefics3 and Ovis2 behind torchvision, because their files
    have the name of its backend in a comment; they need it no more than the others.
    """
    found = getattr(transformers, name)
    if hasattr(found, "_backends"):  # transformers' placeholder for what a missing package would bring
        found = getattr(importlib.import_module(found.__module__), name)
        package = importlib.import_module(found.__module__.rpartition(".")[0])
        setattr(package, name, found)
        setattr(transformers, name, found)
    return found


def _idefics3(tokenizer: Any, template: str) -> Any:
    images = _pil("Idefics3", size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)


def _smolvlm(tokenizer: Any, template: str) -> Any:
    images = _pil("SmolVLM", size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return transformers.SmolVLMProcessor(images, tokenizer, StillsOnly(), image_seq_len=4, chat_template=template)


def _llava(tokenizer: Any, template: str) -> Any:
    square = {"height": 16, "width": 16}
    images = _pil("CLIP", size={"shortest_edge": 16}, crop_size=square)
    return transformers.LlavaProcessor(
        images, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def _llava_next(tokenizer: Any, template: str) -> Any:
    images = _pil(
        "LlavaNext", size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
    )
    return transformers.LlavaNextProcessor(
        images, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


def _llava_onevision(tokenizer: Any, template: str) -> Any:
    images = _pil("LlavaOnevision", size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS)
    return transformers.LlavaOnevisionProcessor(
        images, tokenizer, StillsOnly(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=template,
    )  # fmt: skip


def _internvl(tokenizer: Any, template: str) -> Any:
    images = _pil("GotOcr2", size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=2)
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    return transformers.InternVLProcessor(
        images, _with_names(tokenizer, names), StillsOnly(), image_seq_length=4, chat_template=template
    )


def _qwen(processor: str) -> Callable[[Any, str], Any]:
    def make(tokenizer: Any, template: str) -> Any:
        images = _pil(
            "Qwen2VL", patch_size=4, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": 8 * 8, "longest_edge": 24 * 24},
        )  # fmt: skip
        return getattr(transformers, processor)(images, tokenizer, StillsOnly(), chat_template=template)

    return make


def _glm4v(tokenizer: Any, template: str) -> Any:
    images = _pil(
        "Glm4v", patch_size=4, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 8 * 8, "longest_edge": 24 * 24},
    )  # fmt: skip
    return transformers.Glm4vProcessor(images, tokenizer, StillsOnly(), chat_template=template)


def _aya_vision(tokenizer: Any, template: str) -> Any:
    images = _pil("GotOcr2", size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=2)
    return transformers.AyaVisionProcessor(
        images, tokenizer, patch_size=4, img_size=16, downsample_factor=2, chat_template=template
    )


def _ovis2(tokenizer: Any, template: str) -> Any:
    images = _pil("Ovis2", size={"height": 16, "width": 16})
    return transformers.Ovis2Processor(images, tokenizer, image_seq_length=4, chat_template=template)


def _deepseek_vl(tokenizer: Any, template: str) -> Any:
    images = _pil("DeepseekVL", size={"height": 16, "width": 16}, min_size=4)
    tokenizer = _with_names(tokenizer, {"image_token": "<image>"})
    return transformers.DeepseekVLProcessor(images, tokenizer, num_image_tokens=16, chat_template=template)


def _janus(tokenizer: Any, template: str) -> Any:
    images = _pil("Janus", size={"height": 16, "width": 16}, min_size=4)
    names = {"image_token": "<image>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    return transformers.JanusProcessor(
        images, _with_names(tokenizer, names), num_image_tokens=16, chat_template=template
    )


def _gemma3(tokenizer: Any, template: str) -> Any:
    images = _pil("Gemma3", size={"height": 16, "width": 16})
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return transformers.Gemma3Processor(
        images, _with_names(tokenizer, names), image_seq_length=4, chat_template=template
    )


def _phi4_multimodal(tokenizer: Any, template: str) -> Any:
    images = transformers.Phi4MultimodalImageProcessor(size={"height": 64, "width": 64}, patch_size=2, dynamic_hd=1)
    names = {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"}
    return transformers.Phi4MultimodalProcessor(
        images, transformers.Phi4MultimodalFeatureExtractor(), _with_names(tokenizer, names), chat_template=template
    )


def _fuyu(tokenizer: Any, template: str) -> Any:
    images = _pil("Fuyu", size={"height": 24, "width": 32}, patch_size={"height": 8, "width": 8})
    processor = transformers.FuyuProcessor(images, _with_names(tokenizer, {}))
    processor.chat_template = template
    return processor


GEMMA4_NAMES = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
                "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip


def _gemma4_unified(tokenizer: Any, template: str) -> Any:
    images = transformers.Gemma4UnifiedImageProcessor(patch_size=2, pooling_kernel_size=2, max_soft_tokens=70)
    sounds = transformers.Gemma4UnifiedAudioFeatureExtractor(feature_size=16, audio_samples_per_token=16)
    return transformers.Gemma4UnifiedProcessor(
        sounds, images, _with_names(tokenizer, GEMMA4_NAMES), StillsOnly(), chat_template=template
    )


def _gemma4(tokenizer: Any, template: str) -> Any:
    images = _pil("Gemma4", patch_size=2, pooling_kernel_size=2, max_soft_tokens=70)
    sounds = transformers.Gemma4AudioFeatureExtractor()
    return transformers.Gemma4Processor(
        sounds, images, _with_names(tokenizer, GEMMA4_NAMES), StillsOnly(), chat_template=template
    )


def _chameleon(tokenizer: Any, template: str) -> Any:
    images = _pil("Chameleon", size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    names = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    processor = transformers.ChameleonProcessor(images, _with_names(tokenizer, names), image_seq_length=16)
    processor.chat_template = template
    return processor


def _emu3(tokenizer: Any, template: str) -> Any:
    images = transformers.Emu3ImageProcessor(min_pixels=256, max_pixels=256)
    names = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
             "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}  # fmt: skip
    return transformers.Emu3Processor(images, _with_names(tokenizer, names), chat_template=template)


def _paligemma(tokenizer: Any, template: str) -> Any:
    """Without a chat template, as on the hub."""
    del template
    images = _pil("Siglip", size={"height": 16, "width": 16})
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, _with_names(tokenizer, {"image_token": "<image>"}))


def _mllama(tokenizer: Any, template: str) -> Any:
    images = _pil("Mllama", size={"height": 16, "width": 16}, max_image_tiles=4)
    tokenizer = _with_names(tokenizer, {"image_token": "<image>"})
    return transformers.MllamaProcessor(images, tokenizer, chat_template=template)


def _mistral3(tokenizer: Any, template: str) -> Any:
    images = _pil("Pixtral", size={"longest_edge": 24}, patch_size={"height": 4, "width": 4})
    return transformers.PixtralProcessor(images, tokenizer, patch_size=4, spatial_merge_size=2, chat_template=template)


def _cohere2_vision(tokenizer: Any, template: str) -> Any:
    images = transformers.Cohere2VisionImageProcessor(size={"height": 16, "width": 16}, max_patches=2, patch_size=2)
    names = {"image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
             "img_line_break_token": "<|IMG_LINE_BREAK|>"}  # fmt: skip
    return transformers.Cohere2VisionProcessor(images, _with_names(tokenizer, names), chat_template=template)


def _lfm2_vl(tokenizer: Any, template: str) -> Any:
    images = transformers.Lfm2VlImageProcessor(
        tile_size=16, encoder_patch_size=4, downsample_factor=2, min_image_tokens=1, max_image_tokens=4, max_tiles=4
    )
    return transformers.Lfm2VlProcessor(images, tokenizer, chat_template=template)


def _with_names(tokenizer: Any, names: dict[str, str]) -> Any:
    """A copy of the tokenizer that knows its special tokens by name, as those of the hub do."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token=tokenizer.pad_token, bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token, extra_special_tokens=names,
    )  # fmt: skip


MAKERS: dict[str, Callable[[Any, str], Any]] = {
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": _qwen("Qwen2VLProcessor"),
    "qwen2_5_vl": _qwen("Qwen2_5_VLProcessor"),
    "qwen3_vl": _qwen("Qwen3VLProcessor"),
    "qwen3_vl_moe": _qwen("Qwen3VLProcessor"),
    "qwen3_5": _qwen("Qwen3VLProcessor"),
    "glm4v": _glm4v,
    "aya_vision": _aya_vision,
    "ovis2": _ovis2,
    "deepseek_vl": _deepseek_vl,
    "janus": _janus,
    "gemma3": _gemma3,
    "phi4_multimodal": _phi4_multimodal,
    "fuyu": _fuyu,
    "gemma4_unified": _gemma4_unified,
    "gemma4": _gemma4,
    "chameleon": _chameleon,
    "emu3": _emu3,
    "mllama": _mllama,
    "mistral3": _mistral3,
    "cohere2_vision": _cohere2_vision,
    "lfm2_vl": _lfm2_vl,
    "paligemma": _paligemma,
}


def make_processor(family: Family, template: str) -> Any:
    """The family's processor."""
    return MAKERS[family.model_type](make_tokenizer(family.tokens), template)
