"""A linear student reads a long prompt in memory that grows with a piece of it; counted are all tensors that are made.

Letters: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student import generation
from linearize.student.convert import release_teacher

PIECE, TOKENS = 256, 2048
VOCABULARY = 61
# Of one token: the widest thing that a layer makes of it, a row of a chunk's decays for each of 4 heads.
NUMBERS_OF_A_TOKEN = 4 * 128

pytestmark = pytest.mark.skipif(
    not generation.GOES_ON_IN_PIECES,
    reason="this release of transformers begins a prompt in pieces again at its first token",
)


class Sizes(TorchDispatchMode):
    """Notes what is made that has more numbers than a piece should need.

    Attributes:
        large: shape and dtype of each.
        logits: rows of each tensor as wide as the vocabulary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.large: set[tuple[tuple[int, ...], torch.dtype]] = set()
        self.logits: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at its results."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                if tensor.numel() > PIECE * NUMBERS_OF_A_TOKEN or TOKENS in tensor.shape:
                    self.large.add((tuple(tensor.shape), tensor.dtype))
                if tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY and tensor.is_floating_point():
                    self.logits.add(tensor.numel() // VOCABULARY)
        return found


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(generation, "LONGEST_PIECE", PIECE)
    return


def _prompt(tokens: int = TOKENS) -> Tensor:
    return torch.randint(2, 60, (1, tokens), generator=torch.Generator().manual_seed(6))


def _read(model: Any, ids_BT: Tensor, **options: Any) -> tuple[Any, Sizes]:
    with Sizes() as sizes:
        output = model.generate(
            input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=2, do_sample=False, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True, **options,
        )  # fmt: skip
    return output, sizes


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["growing", "fixed size"])
@pytest.mark.parametrize("mixer", ["mamba2", "gated_delta_net", "swa_linear"])
def test_nothing_but_ids_and_their_mask_is_as_long_as_the_prompt(
    llama: Any, mixer: str, options: dict[str, Any], pieces: None
) -> None:
    model = llama.convert(None, Plugins.discover().registry.get(MixerSpec, mixer), **_small_window(mixer))
    release_teacher(model)
    _, sizes = _read(model, _prompt(), **options)
    wide = {(shape, dtype) for shape, dtype in sizes.large if dtype.is_floating_point or len(shape) > 2}
    assert not wide, wide
    assert all(shape[0] == 1 or len(shape) == 1 for shape, _ in sizes.large)
    assert max(sizes.logits) <= VOCABULARY, (
        "of a piece, only the last token's logits are needed; the tables have as many"
    )


def _small_window(mixer: str) -> dict[str, Any]:
    return {"window": 64} if mixer == "swa_linear" else {}


def test_a_prompt_read_at_once_needs_tensors_of_its_length(llama: Any) -> None:
    """What the test above would see."""
    model = llama.convert(None, Plugins.discover().registry.get(MixerSpec, "mamba2"))
    release_teacher(model)
    _, sizes = _read(model, _prompt())
    assert ((1, TOKENS, 32), torch.float32) in sizes.large


@pytest.mark.parametrize("tokens", [PIECE, PIECE + 1, 3 * PIECE + 5])
def test_pieces_say_what_the_whole_does(llama: Any, pieces: None, tokens: int) -> None:
    model = llama.convert(None, Plugins.discover().registry.get(MixerSpec, "mamba2"))
    release_teacher(model)
    lengths = list[int]()
    model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ids_BT = _prompt(tokens)
    found, _ = _read(model, ids_BT)
    assert lengths == [PIECE] * (tokens // PIECE) + [tokens % PIECE] * (tokens % PIECE > 0) + [1]
    lengths.clear()
    whole, _ = _read(model, ids_BT, prefill_chunk_size=tokens)
    assert lengths == [tokens, 1]
    for mine, expected in zip(found.logits, whole.logits, strict=True):
        # fp32: the same sums in another order.
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_a_hybrid_reads_a_prompt_at_once(llama: Any, pieces: None) -> None:
    model = llama.convert(llama.hybrid, Plugins.discover().registry.get(MixerSpec, "mamba2"))
    lengths = list[int]()
    model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    _read(model, _prompt(PIECE + 9))
    assert lengths == [PIECE + 9, 1]
