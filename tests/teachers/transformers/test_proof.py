"""A teacher is held against what its adapter says of it before a run trains: right ones pass, wrong ones are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import LoadsOnce
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig

from linearize.errors import PluginError
from linearize.proof.teacher import prove_teacher
from linearize.protocols import AttentionSite, AttentionWeights
from linearize.protocols.conversation import IMAGE_MARK, Conversation, Turn
from linearize.testing.teacher_inputs import picture

LONG = Turn("how many red? and what is left of the blue square?", "two green triangles are there")


def prove(adapter: TransformersAdapter, dtype: torch.dtype = torch.float32, *, images: bool = False) -> None:
    question = f"{IMAGE_MARK}\nhow many red?" if images else "how many red?"
    conversation = Conversation((Turn(question, "two"), LONG, LONG), (picture(40, 28, 1),) if images else ())
    model = adapter.load(dtype=dtype, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prove_teacher(model, adapter, adapter.sites(), adapter.batch([conversation]))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    attentions = [model.get_submodule(site.path) for site in adapter.sites()]
    assert not any(one._forward_hooks or one._forward_pre_hooks for module in attentions for one in module.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_passes_and_is_left_as_it_was(adapter: TransformersAdapter, dtype: torch.dtype) -> None:
    prove(adapter, dtype, images=adapter.takes_images and dtype == torch.float32)


class Wrong(LoadsOnce):
    """Says of every site what is not so."""

    facts: dict[str, Any]

    def sites(self) -> list[AttentionSite]:
        own = {name: value for name, value in self.facts.items() if name != "rope_theta"}
        return [dataclasses.replace(site, **own) for site in super().sites()]

    def weights(self, model: Any, site: AttentionSite) -> AttentionWeights:
        weights = super().weights(model, site)
        return dataclasses.replace(weights, **{n: v for n, v in self.facts.items() if hasattr(weights, n)})


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("exaone4", {"window": None}, "with window = 6"),
    ("exaone4", {"window": 7}, "with window = 6"),
    ("llama", {"window": 5}, "with window = None"),
    ("llama", {"rope_style": "interleaved"}, 'rope_style = "half"'),
    ("llama", {"has_rope": False, "rope_theta": None}, 'rope_style = "half"'),
    ("llama", {"scale": 1.0}, "with scale = site.key_dim"),
    ("opt", {"has_rope": True, "rope_theta": 1e4}, "set has_rope = False"),
    ("olmo", {"qkv_clip": None}, "with qkv_clip = 0.5 at the site"),
    ("llama", {"qkv_clip": 0.1}, "with qkv_clip = None at the site"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "facts", "said"), MISTAKES)
def test_what_a_teacher_does_otherwise_is_named(
    checkpoint: Callable[[str], Path], name: str, facts: dict[str, Any], said: str, dtype: torch.dtype
) -> None:
    adapter = Wrong(TransformersTeacherConfig(checkpoint=str(checkpoint(name))))
    adapter.facts = facts
    with pytest.raises(PluginError) as error:
        prove(adapter, dtype)
    assert said in str(error.value)


def test_a_model_that_reads_images_in_both_directions_has_to_say_so(checkpoint: Callable[[str], Path]) -> None:
    adapter = Wrong(TransformersTeacherConfig(checkpoint=str(checkpoint("gemma3"))))
    adapter.facts = {"own_mask": False}
    prove(adapter)  # it does so with images alone
    with pytest.raises(PluginError, match="with own_mask = True at the site"):
        prove(adapter, images=True)


def test_sites_that_agree_are_not_blamed(checkpoint: Callable[[str], Path]) -> None:
    class SecondSiteIsWrong(LoadsOnce):
        def weights(self, model: Any, site: AttentionSite) -> AttentionWeights:
            weights = super().weights(model, site)
            return dataclasses.replace(weights, k=-weights.k) if site.index == 1 else weights

    adapter = SecondSiteIsWrong(TransformersTeacherConfig(checkpoint=str(checkpoint("llama"))))
    with pytest.raises(PluginError, match=r"^site 1 \(model\.layers\.1\.self_attn\) does not compute"):
        prove(adapter)
    model = adapter.load(dtype=torch.float32, device="cpu")
    prove_teacher(model, adapter, adapter.sites()[:1], adapter.batch([Conversation((LONG,))]))


def test_what_no_field_can_say_is_a_caveat_and_not_compared(checkpoint: Callable[[str], Path]) -> None:
    adapter = Wrong(TransformersTeacherConfig(checkpoint=str(checkpoint("llama"))))
    adapter.facts = {"scale": 1.0, "fully_described": False}
    prove(adapter)


@pytest.fixture
def no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where FlashAttention computes, which takes no float32: the module answers in its own dtype."""
    monkeypatch.setattr("linearize.proof.teacher._in_float32", lambda *_: None)


@pytest.mark.usefixtures("no_copy")
def test_a_module_of_which_no_float32_copy_runs_may_lose_what_its_dtype_loses(adapter: TransformersAdapter) -> None:
    prove(adapter, torch.bfloat16)


@pytest.mark.usefixtures("no_copy")
@pytest.mark.parametrize(("name", "facts", "said"), MISTAKES)
def test_mistakes_are_larger_than_what_bfloat16_loses(
    checkpoint: Callable[[str], Path], name: str, facts: dict[str, Any], said: str
) -> None:
    adapter = Wrong(TransformersTeacherConfig(checkpoint=str(checkpoint(name))))
    adapter.facts = facts
    with pytest.raises(PluginError, match=r"^site 0 \("):
        prove(adapter, torch.bfloat16)
