"""The sliding window: the kit, attention written out over a whole matrix, and the teacher that it stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from linearize_sliding_window.attention import Seen, windowed_attention
from linearize_sliding_window.config import SlidingWindowConfig
from linearize_sliding_window.mixer import SlidingWindowMixer
from pydantic import ValidationError
from torch import Tensor

from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import SeederSpec
from linearize.proof.attention import attend
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport, SiteNorm
from linearize.testing import MixerConformance, SeederConformance
from linearize.testing.mixer_inputs import attention_weights
from linearize.testing.numbers import draw, positions_of

SITE = MixerConformance.site
EVERYTHING = replace(
    SITE, qkv_bias=True, scale=0.3, softcap=2.0, qk_norm=SiteNorm(kind="layer", over="heads", has_bias=True),
    rope_style="interleaved",
)  # fmt: skip


def by_matrix(mixer: SlidingWindowMixer, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """One row from a whole matrix of scores, as the teacher's weights would give it, with the window cut out."""
    site, length = mixer.site, len(x_TD)
    norms = {f"{name}_norm{kind}": getattr(getattr(mixer, f"{name}_norm", None), attribute, None)
             for name in "qk" for kind, attribute in (("", "weight"), ("_bias", "bias"))}  # fmt: skip
    weights = AttentionWeights(
        q=mixer.q_proj.weight, k=mixer.k_proj.weight, v=mixer.v_proj.weight, o=torch.empty(0), q_bias=mixer.q_proj.bias,
        k_bias=mixer.k_proj.bias, v_bias=mixer.v_proj.bias, scale=mixer.scale, rope_theta=100.0,
        rope_style=site.rope_style, window=None if mixer.sinks else mixer.window, softcap=site.softcap,
        norm=site.qk_norm.kind if site.qk_norm else "rms", norm_eps=site.qk_norm.eps if site.qk_norm else 1e-6, **norms,
    )  # fmt: skip
    if not mixer.sinks:
        y_TNV = attend(weights, site, x_TD[None], position)[0].view(length, site.num_heads, site.value_dim)
    else:
        # Tokens between the sinks and the window are taken out of the sequence, and the last output is looked at.
        rows = []
        for t in range(length):
            left = [s for s in range(t + 1) if s < mixer.sinks or s > t - mixer.window]
            at = tuple(part[:, left] for part in position)
            rows.append(attend(weights, site, x_TD[None, left], (at[0], at[1]))[0, -1])
        y_TNV = torch.stack(rows).view(length, site.num_heads, site.value_dim)
    return y_TNV * mixer.gain.unsqueeze(-1) if mixer.config.gain else y_TNV


class TestSlidingWindow(MixerConformance):
    name = "sliding_window"
    # Windows shorter than a block and longer than the sequence; sinks that fill up over several calls.
    options = ({"window": 4}, {"window": 70, "sinks": 5}, {"window": 3, "sinks": 2, "gain": False}, {"window": 300})

    def reference(self, mixer: Any, x_TD: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        return by_matrix(mixer, x_TD, position)


class TestSlidingWindowOfAnotherAttention(TestSlidingWindow):
    """Biases, norms with a weight for each head, a scale, a soft cap, and neighbours that turn together."""

    site = EVERYTHING
    options = ({"window": 4, "sinks": 1},)


class SeedsSlidingWindow(SeederConformance):
    site = EVERYTHING

    def mixer(self, site: AttentionSite) -> SlidingWindowMixer:
        return SlidingWindowMixer(SlidingWindowConfig(), site)

    def _teachers(self) -> list[AttentionWeights]:
        with_norms = attention_weights(self.site, biases=True)
        norms = {name: draw(rows, 6, seed=rows, dtype=torch.float32, device="cpu")
                 for name, rows in (("q_norm", 4), ("k_norm", 2))}  # fmt: skip
        return [attention_weights(self.site, biases=False), with_norms, replace(with_norms, **norms)]


class TestMimicSeedsIt(SeedsSlidingWindow):
    name = "mimic"


class TestCopyQkvSeedsIt(SeedsSlidingWindow):
    name = "copy_qkv"


def seeded(site: AttentionSite, weights: AttentionWeights, **options: Any) -> tuple[SlidingWindowMixer, SeedReport]:
    mixer = SlidingWindowMixer(SlidingWindowConfig(**options), site)
    spec = Plugins.discover().registry.get(SeederSpec, "mimic")
    seeder = spec.builder()(spec.config_class()())
    return mixer.double(), seeder.seed(weights, mixer, site=site, generator=torch.Generator())


FORMS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "plain": ({}, {}),
    "biases": ({"qkv_bias": True}, {"q_bias": (24,), "k_bias": (12,), "v_bias": (10,)}),
    "norm over a head": ({"qk_norm": SiteNorm(eps=1e-3)}, {"q_norm": (6,), "k_norm": (6,)}),
    "norm over all heads": ({"qk_norm": SiteNorm(over="all")}, {"q_norm": (24,), "k_norm": (12,)}),
    "layer norm": (
        {"qk_norm": SiteNorm(kind="layer", over="heads", has_bias=True)},
        {"q_norm": (4, 6), "k_norm": (2, 6), "q_norm_bias": (4, 6), "k_norm_bias": (2, 6)},
    ),
    "scale and soft cap": ({"scale": 0.9, "softcap": 1.5}, {}),
    "neighbours turn": ({"rope_style": "interleaved"}, {}),
    "window of its own": ({"window": 5}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_seeded_window_over_the_whole_sequence_is_the_teachers_attention(form: str) -> None:
    facts, extra = FORMS[form]
    site = replace(SITE, **facts)
    tensors = {name: draw(*shape, seed=9, dtype=torch.float64, device="cpu") for name, shape in extra.items()}
    weights = replace(
        attention_weights(site, biases=False), scale=site.scale or site.key_dim**-0.5, softcap=site.softcap,
        window=site.window, rope_style=site.rope_style, norm=site.qk_norm.kind if site.qk_norm else "rms",
        norm_eps=site.qk_norm.eps if site.qk_norm else 1e-6, **tensors,
    )  # fmt: skip
    mixer, report = seeded(site, weights, window=40, sinks=3)
    assert set(report.parameters.values()) == {"copied", "derived"}
    assert {name for name, account in report.parameters.items() if account == "derived"} == {"gain"}
    assert {name for name, account in report.teacher.items() if account != "used"} == {"o"}
    x = draw(2, 40, site.hidden_size, seed=0, dtype=torch.float64, device="cpu")
    position = positions_of(list(range(40)), site.key_dim, x)
    wanted = attend(weights, site, x, position).view(2, 40, site.num_heads, site.value_dim)
    # float64 on both sides: the order of sums is all that differs.
    torch.testing.assert_close(mixer(x, position=position)[0], wanted, rtol=1e-9, atol=1e-9)


def test_values_of_norm_one_are_averaged_as_such() -> None:
    mixer = SlidingWindowMixer(SlidingWindowConfig(window=5), replace(SITE, v_norm_eps=1e-6)).double()
    x = draw(1, 9, SITE.hidden_size, seed=0, dtype=torch.float64, device="cpu")
    values = mixer.v_proj(x[0, :1]).view(2, 5)
    values = values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    # The first token sees itself alone.
    torch.testing.assert_close(mixer(x)[0][0, 0], values.repeat_interleave(2, 0))


def plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention of one head in loops over queries; ``visible`` [T, T]."""
    rows = []
    for t in range(len(q)):
        left = visible[t].nonzero().flatten()
        rows.append((k[left] @ q[t]).softmax(0) @ v[left])
    return torch.stack(rows)


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("calls", [[100], [1, 40, 1, 58], [33, 67]])
def test_pads_anywhere_take_no_place_in_a_window_and_documents_do_not_meet(sinks: int, calls: list[int]) -> None:
    draw_bool = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    valid, document = draw_bool < 0.6, (draw_bool < 0.04).cumsum(1)
    q, k, v = (draw(2, 100, 1, 4, seed=seed, dtype=torch.float64, device="cpu") for seed in range(3))
    outputs, seen, start = [], None, 0
    for length in calls:
        at = slice(start, start + length)
        # Documents begin within calls alone: the first token of a call always goes on.
        y, seen = windowed_attention(
            q[:, at], k[:, at], v[:, at], window=7, sinks=sinks, scale=1.0, valid_BT=valid[:, at],
            segments_BT=document[:, at], seen=seen,
        )  # fmt: skip
        outputs.append(y)
        start += length
    own = document.clone()
    for border in torch.tensor(calls).cumsum(0)[:-1].tolist():
        joined = own[:, border] - own[:, border - 1]
        own[:, border:] -= joined.unsqueeze(1)
    found = torch.cat(outputs, 1)
    for row in range(2):
        real = valid[row].nonzero().flatten()
        ids = own[row, real]
        rank = torch.arange(len(real))
        same = ids.unsqueeze(1) == ids
        in_document = torch.stack([(same[i] & (rank < i)).sum() for i in rank])
        behind = rank.unsqueeze(1) - rank
        visible = same & (behind >= 0) & ((behind < 7) | (in_document < sinks))
        wanted = plain(q[row, real, 0], k[row, real, 0], v[row, real, 0], visible)
        torch.testing.assert_close(found[row, real, 0], wanted, rtol=1e-9, atol=1e-9)


def largest_kept(length: int) -> int:
    """Numbers in the largest tensor that a backward pass over ``length`` tokens keeps."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    q = torch.zeros(1, length, 1, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        windowed_attention(q, q, q, window=16, sinks=2, scale=1.0)
    return max(sizes)


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    # Filling the last block of 32 takes less than a twentieth more.
    assert largest_kept(4000) == pytest.approx(4 * largest_kept(1000), rel=0.05)


def test_a_window_is_at_least_two_tokens_and_no_wider_than_the_teachers() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        SlidingWindowConfig(window=1)
    narrow = SlidingWindowMixer(SlidingWindowConfig(window=64, sinks=4), replace(SITE, window=32))
    assert (narrow.window, narrow.sinks) == (32, 0)
    wide = SlidingWindowMixer(SlidingWindowConfig(window=16, sinks=4), replace(SITE, window=32))
    assert (wide.window, wide.sinks) == (16, 4)


def test_the_state_is_what_one_call_tells_the_next() -> None:
    q = torch.zeros(3, 2, 1, 4)
    _, seen = windowed_attention(q, q, q, window=5, sinks=2, scale=1.0)
    assert isinstance(seen, Seen)
    assert (seen.keys.shape, seen.sink_keys.shape, seen.count_B.tolist()) == ((3, 4, 1, 4), (3, 2, 1, 4), [2, 2, 2])
