"""What a teacher's model has to hold to as a whole: its logits as objectives see them, its published layout.

Letters: B batch, T tokens, D model width, X vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
