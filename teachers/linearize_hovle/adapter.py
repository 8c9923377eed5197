"""The teacher adapter of HoVLE: what linearize asks of a teacher, answered for checkpoints in the published layout.

Model, processor and all that they import are imported where they are used: checking a recipe needs the configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from linearize.errors import CheckpointError, did_you_mean, did_you_mean_path
from linearize.files import hub
from linearize.protocols import AttentionSite, AttentionWeights, Batch
from linearize.protocols.conversation import Conversation
from linearize_hovle.config import HovleTeacherConfig
from linearize_hovle.config_file import read_config
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.prompt import TURN_END
from linearize_hovle.published import layer_prefixes
from linearize_hovle.published_config import config_from_published

if TYPE_CHECKING:
    from linearize_hovle.modeling import HovleForConditionalGeneration
    from linearize_hovle.processing import HovleProcessor

EMBEDDED = Path(__file__).parent / "embedded"
CONFIG_FILES = ("config.json",)
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
ALL_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, "generation_config.json", "*.safetensors", "*.safetensors.index.json")


class HovleAdapter:
    """One HoVLE checkpoint as a teacher. Nothing is read before it is asked for."""

    def __init__(self, config: HovleTeacherConfig) -> None:
        self.checkpoint = config.checkpoint

    @functools.cached_property
    def config(self) -> HovleConfig:
        """The checkpoint's configuration; reads config.json alone."""
        return read_config(self.folder(CONFIG_FILES))

    def folder(self, files: Sequence[str] = ALL_FILES) -> Path:
        """The folder that holds at least these files; fetches them when the checkpoint is a hub id.

        Raises:
            CheckpointError: no such folder, or the hub does not have it or cannot be reached.
        """
        if self.checkpoint == "embedded":
            if not (EMBEDDED / "config.json").is_file():
                raise CheckpointError(
                    f"the embedded HoVLE was asked for, but {EMBEDDED} holds no config.json; reinstall linearize, or "
                    "set teacher.checkpoint to a folder or a hub id"
                )
            return EMBEDDED
        folder = Path(self.checkpoint).expanduser()
        if folder.is_dir():
            return folder
        if folder.is_absolute() or self.checkpoint.startswith((".", "~")) or self.checkpoint.count("/") != 1:
            near = did_you_mean(self.checkpoint, ["embedded"]) or did_you_mean_path(self.checkpoint)
            raise CheckpointError(
                f"there is no folder '{self.checkpoint}'.{near} Give 'embedded', a folder with a "
                "HoVLE's config.json, or a hub id such as 'OpenGVLab/HoVLE'",
                option="checkpoint",
                found=self.checkpoint,
            )
        with hub.asked_once(self.checkpoint) as obstacle:
            from huggingface_hub import snapshot_download

            try:
                return Path(snapshot_download(self.checkpoint, allow_patterns=list(files)))
            except Exception as error:
                near = did_you_mean_path(self.checkpoint)
                raise CheckpointError(
                    f"'{self.checkpoint}' is no folder here.{near} As a hub id it cannot be "
                    f"fetched: {hub.failure(error, obstacle)}",
                    option="checkpoint",
                    found=self.checkpoint,
                ) from error

    def sites(self) -> list[AttentionSite]:
        """Every attention, the embedding tower's first; from config.json alone."""
        return attention_sites(self.config)

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> HovleForConditionalGeneration:
        """The model in eval mode; generation ends at the mark that closes a turn."""
        import linearize_hovle.registration  # noqa: F401  a teacher in use should be known to the Auto classes
        from linearize_hovle.checkpoint import load_model

        model = load_model(self.folder(), dtype=dtype, device=device)
        tokenizer = self._processor.tokenizer
        ends = {int(tokenizer.convert_tokens_to_ids(TURN_END)), int(tokenizer.eos_token_id)}
        model.generation_config.update(
            eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
        )
        return model

    def random_model(self, *, dtype: torch.dtype, device: torch.device | str) -> HovleForConditionalGeneration:
        """A model of the checkpoint's sizes with random weights, in eval mode; from config.json alone."""
        from linearize_hovle.modeling import HovleForConditionalGeneration

        with torch.device(device):
            return HovleForConditionalGeneration._from_config(self.config, dtype=dtype).eval()

    @functools.cached_property
    def _processor(self) -> HovleProcessor:
        import linearize_hovle.registration  # noqa: F401  a teacher in use should be known to the Auto classes
        from linearize_hovle.processing import load_processor

        return load_processor(self.folder((*CONFIG_FILES, *TOKENIZER_FILES)), self.config)

    def processor(self) -> HovleProcessor:
        """Tokenizer, tiling and prompt of the checkpoint."""
        return self._processor

    def weights(self, model: Any, site: AttentionSite) -> AttentionWeights:
        """The projections of a site that holds its attention, or a replacement with the same attribute names."""
        attention = model.get_submodule(site.path)
        config = self._tower(model.config, site)
        return AttentionWeights(
            q=attention.q_proj.weight,
            k=attention.k_proj.weight,
            v=attention.v_proj.weight,
            o=attention.o_proj.weight,
            q_bias=attention.q_proj.bias,
            k_bias=attention.k_proj.bias,
            v_bias=attention.v_proj.bias,
            o_bias=attention.o_proj.bias,
            scale=float(site.key_dim**-0.5),
            rope_theta=float(config.rope_parameters["rope_theta"]),
        )

    def batch(self, conversations: Sequence[Conversation], *, for_generation: bool = False) -> Batch:
        """Whole conversations right-padded, or for generation left-padded prompts up to the last question."""
        from linearize_hovle.batching import make_batch

        return make_batch(self._processor, conversations, for_generation=for_generation)

    def num_tokens(self, conversation: Conversation) -> int:
        """How many tokens ``batch`` makes of a conversation; looks at image sizes, not at pixels."""
        from linearize_hovle.batching import encode_conversation

        tiles = [self._processor.num_tiles(image.size) for image in conversation.images]
        return len(encode_conversation(self._processor, conversation, tiles, for_generation=False)[0])

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of whole documents, between BOS and EOS."""
        from linearize_hovle.batching import encode_document

        return [encode_document(self._processor.tokenizer, text) for text in texts]

    def text_batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of tokens, right-padded; the loss covers all of them."""
        from linearize_hovle.batching import make_text_batch

        return make_text_batch(self._processor, rows)

    def packing_obstacle(self) -> str:
        """Why samples cannot share a row; "" where they can."""
        if not self.config.embedding.shuffles_after_layers:
            return ""
        return "its embedding tower runs over patches of images and not over tokens (pixel_shuffle_loc = 'post')"

    def pack(self, batches: Sequence[Batch], width: int) -> Batch:
        """Batches of one sample each as one row; pixels follow each other as the samples do."""
        from linearize.data.packing import end_to_end

        return end_to_end(batches, width, pad_token_id=self._processor.tokenizer.pad_token_id)

    def decode(self, ids_BT: Tensor) -> list[str]:
        """The text of generated ids, special tokens stripped."""
        texts: list[str] = self._processor.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def published_attention_prefix(self, site: AttentionSite) -> str:
        """The prefix of a site's attention tensors in the published layout."""
        return published_attention_prefix(self.config, site)

    def from_published(
        self, config: dict[str, Any], state: dict[str, Tensor], *, without_attention: Collection[int] = ()
    ) -> HovleForConditionalGeneration:
        """A model from published tensors; the sites named have no wqkv and wo in ``state`` and get zeros."""
        from linearize_hovle.checkpoint import model_from_tensors

        return model_from_tensors(config_from_published(config), state, without_attention=without_attention)

    def to_published(
        self, model: Any, *, without_attention: Collection[int] = ()
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """config.json and tensors in the published layout, without the attention of the sites named."""
        from linearize_hovle.checkpoint import published_state

        return published_state(model, without_attention=without_attention)

    @staticmethod
    def _tower(config: HovleConfig, site: AttentionSite) -> LlamaConfig:
        return config.embedding if site.tower == "embedding" else config.language


def attention_sites(config: HovleConfig) -> list[AttentionSite]:
    """Every attention of a HoVLE, in execution order."""
    towers = (("embedding", "embedding_model", config.embedding), ("language", "language_model", config.language))
    # As in modeling: the language tower takes the first cache slots when the embedding tower's sequence is the longer
    # one.
    first_slot = {
        "embedding": config.language.num_hidden_layers if config.embedding.shuffles_after_layers else 0,
        "language": 0 if config.embedding.shuffles_after_layers else config.embedding.num_hidden_layers,
    }
    places = [
        (name, module, tower, layer) for name, module, tower in towers for layer in range(tower.num_hidden_layers)
    ]
    return [
        AttentionSite(
            index=index,
            path=f"{module}.layers.{layer}.self_attn",
            tower=name,
            layer=layer,
            num_layers=tower.num_hidden_layers,
            cache_index=first_slot[name] + layer,
            hidden_size=tower.hidden_size,
            num_heads=tower.num_attention_heads,
            num_key_value_heads=tower.num_key_value_heads or tower.num_attention_heads,
            key_dim=int(tower.head_dim),
            value_dim=int(tower.head_dim),
            qkv_bias=bool(tower.attention_bias),
        )
        for index, (name, module, tower, layer) in enumerate(places)
    ]


def published_attention_prefix(config: HovleConfig, site: AttentionSite) -> str:
    """The prefix of a site's attention tensors as published, such as "embedding_model.encoder.0.attention."."""
    return f"{layer_prefixes(config)[site.index][0]}attention."
