"""Tiny random teachers and a tiny mixer, small enough that decoding them token by token takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from linearize_hovle.adapter import attention_sites
from linearize_hovle.configuration import HovleConfig, HovleEmbeddingConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SmolVLMConfig, SmolVLMForConditionalGeneration

from linearize.plugin.config import Config
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import MixerSpec, TeacherSpec
from linearize.protocols import AttentionSite
from linearize.student.convert import convert, set_linear
from linearize.student.mixers import build_mixer

torch.set_num_threads(1)


class ToyConfig(Config):
    strength: float = 0.5


class ToyMixer(nn.Module):
    """A decayed linear attention written as a loop, with a token shift of one and a buffer outside state_dict()."""

    projections: Mapping[str, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

    def __init__(self, config: ToyConfig, site: AttentionSite) -> None:
        super().__init__()
        self.site = site
        self.q_proj = nn.Linear(site.hidden_size, site.num_heads * site.key_dim, bias=False)
        self.k_proj = nn.Linear(site.hidden_size, site.num_heads * site.key_dim, bias=False)
        self.v_proj = nn.Linear(site.hidden_size, site.num_heads * site.value_dim, bias=False)
        self.log_decay = nn.Parameter(torch.linspace(-2.0, 0.0, site.num_heads))
        self.register_buffer("shift", torch.full((site.hidden_size,), config.strength), persistent=False)

    def roles(self) -> Mapping[str, frozenset[str]]:
        named = {f"{name}.weight": frozenset({"qkv"}) for name in self.projections.values()}
        return {**named, "log_decay": frozenset({"new", "decay"})}

    def initialize(self, style: str, generator: torch.Generator) -> None:
        del style
        with torch.no_grad():
            self.log_decay.uniform_(-2.0, 0.0, generator=generator)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        del position, segments_BT
        batch, tokens, width = x_BTD.shape
        heads, key, value = self.site.num_heads, self.site.key_dim, self.site.value_dim
        last_BD = x_BTD.new_zeros(batch, width) if state is None else state["last"]
        s_BNKV = x_BTD.new_zeros(batch, heads, key, value) if state is None else state["s"]
        decay_BN11 = torch.exp(-torch.exp(self.log_decay.float())).to(x_BTD.dtype)[None, :, None, None]
        valid_BT = x_BTD.new_ones(batch, tokens, dtype=torch.bool) if valid_BT is None else valid_BT
        outputs = []
        for step in range(tokens):
            real_B1 = valid_BT[:, step, None]
            x_BD = x_BTD[:, step] + self.shift * last_BD
            q_BNK = self.q_proj(x_BD).view(batch, heads, key)
            k_BNK = self.k_proj(x_BD).view(batch, heads, key)
            v_BNV = self.v_proj(x_BD).view(batch, heads, value)
            after_BNKV = decay_BN11 * s_BNKV + k_BNK[..., None] * v_BNV[..., None, :]
            s_BNKV = torch.where(real_B1[..., None, None], after_BNKV, s_BNKV)
            last_BD = torch.where(real_B1, x_BTD[:, step], last_BD)
            outputs.append(torch.einsum("bnk,bnkv->bnv", q_BNK, s_BNKV))
        return torch.stack(outputs, dim=1), {"s": s_BNKV, "last": last_BD}


TOY_SPEC = MixerSpec(
    name="toy", build=f"{__name__}:ToyMixer", config=f"{__name__}:ToyConfig", source="https://example.org/toy"
)


class ToyPlugin:
    @hookimpl
    def linearize_register(self, register: Register) -> None:
        register(TOY_SPEC)
        register(TeacherSpec(
            name="toy_teacher", build=f"{__name__}:TEACHERS", source="https://example.org/toy",
            model_types={
                "llama": "transformers:LlamaForCausalLM", "smolvlm": "transformers:SmolVLMForConditionalGeneration",
            },
        ))  # fmt: skip


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """The installed plug-ins and the toy one, for whoever discovers."""
    known = Plugins.discover()
    known.add(ToyPlugin(), name="toy", version="7")
    monkeypatch.setattr(Plugins, "discover", classmethod(lambda cls: known))
    return known


@dataclass
class Teacher:
    """A tiny random model, its sites and a left-padded batch of prompts for it."""

    model: Any
    sites: list[AttentionSite]
    inputs: dict[str, Tensor]

    def convert(self, linear: Collection[int] | None = None, spec: MixerSpec = TOY_SPEC, **options: Any) -> Any:
        """The model with seeded random mixers in every site; ``linear`` (all when None) run in the student route."""
        torch.manual_seed(1)
        mixers = {site.index: build_mixer(spec, spec.config_class()(**options), site) for site in self.sites}
        for mixer in mixers.values():
            mixer.initialize("scratch", torch.Generator().manual_seed(2))  # type: ignore[operator]
        convert(self.model, self.sites, mixers)
        if linear is not None:
            set_linear(self.model, linear)
        return self.model

    @property
    def hybrid(self) -> list[int]:
        """Every second site."""
        return [site.index for site in self.sites if site.index % 2]


def _plain_sites(config: Any, path: str) -> list[AttentionSite]:
    return [
        AttentionSite(
            index=layer, path=path.format(layer), tower="language", layer=layer, cache_index=layer,
            hidden_size=config.hidden_size, num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads, key_dim=8, value_dim=8,
        )
        for layer in range(config.num_hidden_layers)
    ]  # fmt: skip


DECODER: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip


def _llama() -> tuple[Any, list[AttentionSite]]:
    config = LlamaConfig(**DECODER)
    return LlamaForCausalLM(config), _plain_sites(config, "model.layers.{}.self_attn")


def _smolvlm() -> tuple[Any, list[AttentionSite]]:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = SmolVLMConfig(
        vision_config=vision, text_config={"model_type": "llama", **DECODER}, image_token_id=60, scale_factor=2,
        tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    sites = _plain_sites(config.text_config, "model.text_model.layers.{}.self_attn")
    return SmolVLMForConditionalGeneration(config), sites


def _hovle(pixel_shuffle_loc: str = "pre") -> tuple[Any, list[AttentionSite]]:
    tower = DECODER | {"num_hidden_layers": 2}
    config = HovleConfig(
        embedding_config=HovleEmbeddingConfig(
            **tower, patch_size=4, image_size=16, image_token_id=60, pixel_shuffle_loc=pixel_shuffle_loc
        ),
        text_config=LlamaConfig(**tower),
        image_size=16,
    )
    return HovleForConditionalGeneration(config), attention_sites(config)


FAMILIES: dict[str, Callable[[], tuple[Any, list[AttentionSite]]]] = {
    "llama": _llama,
    "smolvlm": _smolvlm,
    "hovle": _hovle,
    "hovle_post": lambda: _hovle("post"),
}


def make_teacher(family: str) -> Teacher:
    """The family's model with weights large enough that its answers do not repeat one token."""
    torch.manual_seed(0)
    model, sites = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.normal_(std=0.25)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 60, (2, 11), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family.startswith("hovle"):
        ids[:, 5:9] = 60  # one tile a row: 16 px / 4 px a patch / 2 by the shuffle, squared
        inputs["pixel_values"] = torch.randn(2, 3, 16, 16, generator=generator)
    return Teacher(model.eval(), sites, inputs)


@pytest.fixture(params=list(FAMILIES))
def teacher(request: pytest.FixtureRequest) -> Teacher:
    return make_teacher(request.param)


@pytest.fixture
def llama() -> Teacher:
    return make_teacher("llama")


@pytest.fixture
def hovle() -> Teacher:
    return make_teacher("hovle")
