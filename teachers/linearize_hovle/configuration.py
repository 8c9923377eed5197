"""The configuration of a HoVLE model.

It has two sub-configurations with transformers' own field names: ``embedding_config`` (the embedding module: vision
part and first tower) and ``text_config`` (the language model: second tower). ``published_config`` translates the
published config.json.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, cast

from transformers import LlamaConfig, PreTrainedConfig


class HovleEmbeddingConfig(LlamaConfig):
    """The embedding module: patches and text rows, then a tower of decoder layers.

    Attributes:
        image_size: side in pixels of the grid that the position table was made for; other grids resize the table.
        patch_size: side in pixels of one patch.
        downsample_ratio: pixel shuffle joins (1 / ratio)² neighbouring patches into one token.
        pixel_shuffle_loc: "pre" shuffles before the tower, "post" after it (the tower then sees every patch).
        use_pixel_shuffle_proj: without it there is neither shuffle nor projection, and every patch is a token.
        image_token_id: the token whose rows are replaced by the image.
    """

    model_type = "hovle_embedding"
    base_config_key = "embedding_config"

    num_channels: int = 3
    patch_size: int = 14
    image_size: int = 448
    downsample_ratio: float = 0.5
    pixel_shuffle_loc: str = "pre"
    use_pixel_shuffle_proj: bool = True
    image_token_id: int = 92546

    @property
    def shuffle_factor(self) -> int:
        """How many patches along one side become one token; 1 without pixel shuffle."""
        return round(1 / self.downsample_ratio) if self.use_pixel_shuffle_proj else 1

    @property
    def shuffles_after_layers(self) -> bool:
        """Whether the tower runs over patches and the shuffle comes after it."""
        return self.use_pixel_shuffle_proj and self.pixel_shuffle_loc == "post"


class HovleConfig(PreTrainedConfig):
    """A whole HoVLE model.

    Attributes:
        image_size: side in pixels of one tile.
        template: name of the prompt template, see ``linearize_hovle.prompt``.
        dynamic_image_size: cut images into tiles by aspect ratio; otherwise one tile per image.
        use_thumbnail: add the whole image as one more tile when there is more than one.
        min_dynamic_patch, max_dynamic_patch: fewest and most tiles per image, the thumbnail not counted.
        exact_dynamic_rope: with dynamic NTK scaling, whether a cached decode must equal a full forward, see
            ``modeling``.
        published: what the published config.json held; only for writing it back.
    """

    model_type = "hovle"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "embedding_config": HovleEmbeddingConfig,
        "text_config": LlamaConfig,
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]

    embedding_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int = 448
    template: str = "internlm2-chat"
    dynamic_image_size: bool = True
    use_thumbnail: bool = True
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6
    tie_word_embeddings: bool = False
    exact_dynamic_rope: bool = True
    published: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.embedding_config, PreTrainedConfig):
            self.embedding_config = HovleEmbeddingConfig(**_without_type(self.embedding_config))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = LlamaConfig(**_without_type(self.text_config))
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The language model's configuration; as a decoder, with the depth of both towers, as caches need it."""
        if not decoder or encoder:
            return self.language
        whole = copy.copy(self.language)
        whole.num_hidden_layers = self.num_layers + (2 if self.needs_extra_slots else 0)
        return whole

    @property
    def num_layers(self) -> int:
        """Decoder layers of both towers."""
        return self.embedding.num_hidden_layers + self.language.num_hidden_layers

    @property
    def needs_extra_slots(self) -> bool:
        """Whether the cache holds more than keys and values of the layers, see ``modeling``."""
        ropes = (self.embedding.rope_parameters, self.language.rope_parameters)
        return self.embedding.shuffles_after_layers or any(rope["rope_type"] == "dynamic" for rope in ropes)

    @property
    def embedding(self) -> HovleEmbeddingConfig:
        """The embedding module's configuration, typed."""
        return cast(HovleEmbeddingConfig, self.embedding_config)

    @property
    def language(self) -> LlamaConfig:
        """The language model's configuration, typed."""
        return cast(LlamaConfig, self.text_config)

    @property
    def image_token_id(self) -> int:
        """The token whose rows are replaced by the image."""
        return self.embedding.image_token_id

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one tile takes in the language model."""
        side = self.image_size // self.embedding.patch_size // self.embedding.shuffle_factor
        return side * side


def _without_type(section: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (section or {}).items() if key != "model_type"}
