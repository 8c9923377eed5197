"""What a teacher's model has to hold to as a whole: its logits as objectives see them, its published layout.

Letters: B batch, T tokens, D model width, X vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from linearize.distill.logits import final_hidden
from linearize.protocols import AttentionSite, Batch
from linearize.student.state import CACHE_NAME
from linearize.testing.numbers import assert_values_near
from linearize.testing.teacher_inputs import logits_of


def check_cache_name(model: nn.Module) -> None:
    """Fails if the model's forward names the cache as other releases of transformers do: generate() passes it by name.

    A forward with ``**kwargs`` would swallow it, and each step would begin with an empty cache.
    """
    __tracebackhide__ = True
    named = [name for name in ("cache", "past_key_values") if name in inspect.signature(model.forward).parameters]
    assert CACHE_NAME in named or not named, (
        f"{type(model).__name__}.forward takes its cache as '{named[0]}'; with the installed transformers generate() "
        f"passes it as '{CACHE_NAME}': name it so, in the arguments and in the output"
    )


def check_cache_slots(model: Any, sites: Sequence[AttentionSite]) -> None:
    """Fails if generate() makes a slot of the cache that forgets tokens which the site's attention sees.

    transformers makes slots by the configuration alone: a ``sliding_window`` without ``layer_types`` is every layer's.
    """
    __tracebackhide__ = True
    config = model.config.get_text_config(decoder=True)
    layers, kinds = DynamicCache(config=config).layers, getattr(config, "layer_types", None)
    for site in sites:
        if site.cache_index >= len(layers):
            continue
        kept = getattr(layers[site.cache_index], "sliding_window", None)
        # Where attention is cut into chunks, a slot keeps one of them, and a site has no word for it.
        if kept is None or (kinds and kinds[site.cache_index] == "chunked_attention"):
            continue
        reaches = site.window is not None and site.window <= kept
        assert reaches, (
            f"site {site.index} ({site.path}) has window = {site.window}, but its slot of the cache keeps the last "
            f"{kept} tokens alone: generate() makes the slots by the configuration, which says sliding_window = "
            f"{kept}{'' if kinds else ' and no layer_types, so it is the window of every layer'}. Give the "
            'configuration layer_types, a list with "full_attention" or "sliding_attention" for each layer; or call '
            "sliding_window otherwise there, and every slot keeps all tokens"
        )


def check_teacher_writes(model: Any, batch: Batch, options: Mapping[str, Any]) -> None:
    """Fails unless the teacher itself, nothing converted, writes the same with a cache as without.

    Args:
        options: of a GenerationConfig.
    """
    __tracebackhide__ = True
    alone = "the teacher itself, before anything is converted,"
    whole = _written(
        model,
        batch,
        options,
        use_cache=False,
        hint=f"{alone} fails in generate(). What forward does not name among its arguments generate() refuses to "
        "pass, **kwargs or not: name there what batch() gives, such as pixel_values, the attention_mask, and the "
        f"cache as '{CACHE_NAME}'",
    )
    masks = (
        "A slot that keeps a window's tokens alone gives that many keys; a mask made of the attention_mask has a "
        "column for every token. Make it by transformers.masking_utils, or keep all tokens in every slot: call "
        "sliding_window otherwise in the configuration"
    )
    cached = _written(
        model, batch, options, use_cache=True, hint=f"{alone} fails in generate() with a cache, not without. {masks}"
    )
    assert torch.equal(cached, whole), (
        f"{alone} writes other tokens with a cache than without. Look at positions and masks of a call that follows "
        f"another: left padding counts in the mask, not in the positions. {masks}"
    )


def _written(model: Any, batch: Batch, options: Mapping[str, Any], *, use_cache: bool, hint: str) -> Tensor:
    __tracebackhide__ = True
    try:
        written: Tensor = model.generate(
            **batch.inputs, generation_config=GenerationConfig(**options, use_cache=use_cache)
        )
    except Exception as error:  # whatever a stranger's model raises there
        raise AssertionError(f"{hint}. It raised {type(error).__name__}: {error}") from error
    return written


@torch.no_grad()
def check_logits(model: Any, batch: Batch, tolerance: float) -> None:
    """Fails unless the logits that an objective makes of final hidden states are those of the model's forward."""
    __tracebackhide__ = True
    final = final_hidden(model, batch)
    logits_BTX = final.to_logits(final.x_BTD.flatten(0, 1)).unflatten(0, final.x_BTD.shape[:2])
    assert_logits_near(
        logits_BTX,
        logits_of(model, batch),
        tolerance,
        "run again from its final hidden states, the model gives other logits, and a stage of logit_kl would train on "
        "those: let forward call the attribute that base_model_prefix names once, and nothing but the head and what "
        "changes logits after it. Against forward's, the objective's logits are",
    )


def assert_logits_near(found_BTX: Tensor, expected_BTX: Tensor, tolerance: float, what: str) -> None:
    """``assert_values_near`` for logits, of which some may be masked by a least number: those have to be the same ones.

    Beside such a number all others would be near each other.
    """
    __tracebackhide__ = True
    masked = torch.finfo(expected_BTX.dtype).min / 2
    hidden_BTX = expected_BTX < masked
    assert torch.equal(found_BTX < masked, hidden_BTX), f"{what} masked at other places"
    assert_values_near(found_BTX.masked_fill(hidden_BTX, 0), expected_BTX.masked_fill(hidden_BTX, 0), tolerance, what)


def check_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Fails unless a saved and loaded student has the tensors that it had in memory, bit for bit."""
    __tracebackhide__ = True
    lost = sorted(found.keys() ^ expected.keys())
    assert not lost, f"tensors that the student has before it is saved or after, but not both: {lost[:5]}"
    other = [name for name, tensor in expected.items() if not _is_same(found[name], tensor)]
    assert not other, f"tensors that are not what was saved: {other[:5]}"


def check_same_buffers(found: nn.Module, expected: nn.Module) -> None:
    """Fails unless buffers that no file holds are made again as they were."""
    __tracebackhide__ = True
    made = dict(found.named_buffers())
    other = [name for name, buffer in expected.named_buffers() if name in made and not _is_same(made[name], buffer)]
    assert not other, (
        f"buffers that are not what they were before the student was saved: {other[:5]}; compute them in the model's "
        "constructor from its configuration, or register them persistent"
    )


def _is_same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def check_published(adapter: Any, model: Any, sites: list[AttentionSite]) -> None:
    """Fails unless the published layout holds every tensor, and each site's attention under its prefix."""
    __tracebackhide__ = True
    config, state = adapter.to_published(model)
    again = adapter.from_published(config, state).state_dict()
    assert again.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    for site in sites:
        prefix = adapter.published_attention_prefix(site)
        assert any(name.startswith(prefix) for name in state), f"no published tensor begins with {prefix}"
