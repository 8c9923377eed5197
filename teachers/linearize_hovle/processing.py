"""Images and text to model inputs, with PIL and numpy alone.

Letters: I tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from linearize.errors import CheckpointError, DataError
from linearize.protocols.conversation import IMAGE_MARK
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.prompt import IMAGE_CONTEXT, expand_images, get_template
from linearize_hovle.tiling import IMAGENET_MEAN, IMAGENET_STD, choose_grid, count_tiles, cut_tiles, normalize
from linearize_hovle.tokenization import HovleTokenizer

Images = Image.Image | str | Sequence[Any] | None


class HovleProcessor(ProcessorMixin):
    """Tiles, pixel values, prompts and ids of one HoVLE model.

    Args:
        tokenizer: with the added tokens of ``linearize_hovle.tokenization``.
        image_size: side of a tile in pixels.
        num_image_tokens: tokens that one tile takes in the language model.
        min_tiles, max_tiles: fewest and most tiles of one image, the thumbnail not counted.
        use_thumbnail: add the whole image as a tile when there are several.
        template: name of the prompt template.
        image_mean, image_std: per channel, of pixel values between 0 and 1.
    """

    def __init__(
        self,
        tokenizer: HovleTokenizer,
        image_size: int = 448,
        num_image_tokens: int = 256,
        min_tiles: int = 1,
        max_tiles: int = 6,
        use_thumbnail: bool = True,
        template: str = "internlm2-chat",
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        chat_template: str | None = None,
    ) -> None:
        self.image_size = image_size
        self.num_image_tokens = num_image_tokens
        self.min_tiles = min_tiles
        self.max_tiles = max_tiles
        self.use_thumbnail = use_thumbnail
        self.template = template
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        super().__init__(tokenizer, chat_template=chat_template or get_template(template).jinja())
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT))

    @classmethod
    def for_model(cls, config: HovleConfig, tokenizer: HovleTokenizer) -> HovleProcessor:
        """The processor that a model's configuration asks for."""
        dynamic = config.dynamic_image_size
        return cls(
            tokenizer,
            image_size=config.image_size,
            num_image_tokens=config.num_image_tokens,
            min_tiles=config.min_dynamic_patch if dynamic else 1,
            max_tiles=config.max_dynamic_patch if dynamic else 1,
            use_thumbnail=config.use_thumbnail,
            template=config.template,
        )

    def num_tiles(self, size: tuple[int, int]) -> int:
        """How many tiles an image of that (width, height) is cut into, the thumbnail included."""
        grid = choose_grid(*size, image_size=self.image_size, min_tiles=self.min_tiles, max_tiles=self.max_tiles)
        return count_tiles(grid, use_thumbnail=self.use_thumbnail)

    def pixels(self, images: Sequence[Image.Image]) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Pixel values [I, 3, image_size, image_size] of all tiles, and the number of tiles of each image."""
        cut = [
            cut_tiles(
                image,
                image_size=self.image_size,
                min_tiles=self.min_tiles,
                max_tiles=self.max_tiles,
                use_thumbnail=self.use_thumbnail,
            )
            for image in images
        ]
        tiles = np.concatenate(cut) if cut else np.empty((0, self.image_size, self.image_size, 3), np.uint8)
        return normalize(tiles, self.image_mean, self.image_std), [len(one) for one in cut]

    def __call__(
        self,
        images: Images = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool = True,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of prompts that hold one ``<image>`` mark per image.

        Args:
            images: one image, or all images in the order of the marks, nested per prompt or flat; a text is a file's
                path, a URL or base64.
            text: one prompt or several; a BOS is added, nothing else.
            padding_side: "left" (default, for generation) or "right".

        Raises:
            DataError: marks and images differ in number.
            ValueError: no text.
        """
        if text is None:
            raise ValueError("HoVLE's processor needs text; images alone give no prompt")
        prompts = [text] if isinstance(text, str) else list(text)
        pixel_values, counts = self.pixels(_flat(images))
        marks = sum(prompt.count(IMAGE_MARK) for prompt in prompts)
        if marks != len(counts):
            raise DataError(
                f"the prompts hold {marks} {IMAGE_MARK} marks, but {len(counts)} images came with them; "
                "each image needs its own mark"
            )
        rows, taken = [], 0
        for prompt in prompts:
            own = counts[taken : (taken := taken + prompt.count(IMAGE_MARK))]
            rows.append(expand_images(prompt, own, self.num_image_tokens))
        kwargs.pop("chat_template", None)
        encoded = self.tokenizer(
            rows,
            padding=padding,
            padding_side=padding_side or self.tokenizer.padding_side,
            return_token_type_ids=False,
            **kwargs,
        )
        data = dict(encoded)
        if counts:
            data["pixel_values"] = pixel_values
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes from this processor."""
        return [*self.tokenizer.model_input_names, "pixel_values"]


def _flat(images: Images) -> list[Image.Image]:
    if images is None:
        return []
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, str):
        return [load_image(images)]
    return [one for item in images for one in _flat(item)]


def load_processor(folder: Path, config: HovleConfig) -> HovleProcessor:
    """The processor of a folder with a sentencepiece ``tokenizer.model``.

    Raises:
        CheckpointError: there is none, it cannot be read, or its image token is not the one that config.json names.
    """
    if not (folder / "tokenizer.model").is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer.model; a HoVLE folder needs its sentencepiece model beside config.json"
        )
    try:
        tokenizer = HovleTokenizer.from_pretrained(str(folder))
    except Exception as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {error}") from error
    processor = HovleProcessor.for_model(config, tokenizer)
    if processor.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{folder}: the tokenizer gives <IMG_CONTEXT> the id {processor.image_token_id}, config.json says "
            f"{config.image_token_id} (embedding_config.img_context_token_id); the two files must belong together"
        )
    return processor
