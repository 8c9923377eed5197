"""Sliding-window softmax attention in the place of one softmax attention: the same, over the last W tokens.

    output = gain · softmax(q k_sᵀ scale) v_s over s in t - W < s <= t, and over the first n tokens

q, k and v are normed, clamped, turned and capped as the site says that the teacher's are, so that a window over the
whole sequence is the teacher's attention. A key that an earlier call saw keeps the turn of its own position.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, H either, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linearize.mixing.draw import fill_linear
from linearize.mixing.empty import without_tokens
from linearize.mixing.rotary import rotate
from linearize.protocols import AttentionSite, SeedStyle, SiteNorm, State
from linearize_sliding_window.attention import Attention, Seen, attend, attend_to_sums, windowed_attention
from linearize_sliding_window.config import SlidingWindowConfig


class SlidingWindowMixer(nn.Module):
    """A window of attention without its output projection.

    Its state is "keys" and "values" of the last W - 1 tokens, "sink_keys" and "sink_values" of the first n where there
    are sinks, and "count".
    """

    def __init__(self, config: SlidingWindowConfig, site: AttentionSite) -> None:
        super().__init__()
        self.config, self.site = config, site
        is_the_teachers = site.window is not None and site.window <= config.window
        self.window = site.window if is_the_teachers and site.window is not None else config.window
        # Where the window is all that the teacher sees, it does not see its first tokens for ever.
        self.sinks = 0 if is_the_teachers else config.sinks
        self.scale = site.key_dim**-0.5 if site.scale is None else site.scale
        heads, groups = site.num_heads, site.num_key_value_heads
        widths = heads * site.key_dim, groups * site.key_dim, groups * site.value_dim
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(site.hidden_size, width, bias=site.qkv_bias) for width in widths
        )
        self.projections: Mapping[str, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
        if site.qk_norm is not None:
            self.q_norm = HeadNorm(site.qk_norm, heads, site.key_dim)
            self.k_norm = HeadNorm(site.qk_norm, groups, site.key_dim)
            self.projections = {**self.projections, "q_norm": "q_norm", "k_norm": "k_norm"}
        if config.gain:
            self.gain = nn.Parameter(torch.ones(heads))

    def roles(self) -> Mapping[str, frozenset[str]]:
        """The teacher's projections and norms are "qkv"; the gain alone is "new"."""
        finer: dict[str, frozenset[str]] = {"gain": frozenset({"new", "gain"})}
        finer |= dict.fromkeys(("q_norm", "k_norm"), frozenset({"qkv", "norm"}))
        return {name: finer.get(name.split(".")[0], frozenset({"qkv"})) for name, _ in self.named_parameters()}

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """The gain and norms are 1 in both styles; "scratch" draws the projections from PyTorch's range too."""
        if style == "scratch":
            for linear in (self.q_proj, self.k_proj, self.v_proj):
                fill_linear(linear, generator)
        for name, parameter in self.named_parameters():
            if name == "gain" or "_norm." in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def empty_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """See :class:`linearize.protocols.Mixer`: places for keys and values, none of which counts yet."""
        groups, kept = self.site.num_key_value_heads, self.window - 1

        def zeros(tokens: int, width: int) -> Tensor:
            return torch.zeros(batch_size, tokens, groups, width, device=device, dtype=dtype)

        return _state(Seen(
            keys=zeros(kept, self.site.key_dim), values=zeros(kept, self.site.value_dim),
            sink_keys=zeros(self.sinks, self.site.key_dim), sink_values=zeros(self.sinks, self.site.value_dim),
            count_B=torch.zeros(batch_size, device=device, dtype=torch.int64),
        ))  # fmt: skip

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """See :class:`linearize.protocols.Mixer`."""
        if x_BTD.shape[1] == 0:
            return without_tokens(self, self.site, x_BTD, state)
        y_BTNV, after = self._attend(x_BTD, attend, valid_BT, position, segments_BT, state)
        if self.config.gain:
            y_BTNV = y_BTNV * self.gain.to(y_BTNV.dtype).unsqueeze(-1)
        return y_BTNV, after

    def sums(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None,
        position: tuple[Tensor, Tensor] | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """As ``forward``; [B, T, N, V + 1], at least fp32: what softmax would divide, without gain, and by what."""
        return self._attend(x_BTD, attend_to_sums, valid_BT, position, segments_BT, state)

    def _attend(
        self, x_BTD: Tensor, attention: Attention, valid_BT: Tensor | None, position: tuple[Tensor, Tensor] | None,
        segments_BT: Tensor | None, state: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        q_BTNK, k_BTMK = (part.unflatten(-1, (-1, self.site.key_dim)) for part in (q, k))
        if self.site.qk_norm is not None:
            q_BTNK, k_BTMK = self.q_norm(q_BTNK), self.k_norm(k_BTMK)
        if self.site.qkv_clip is not None:
            limits = -self.site.qkv_clip, self.site.qkv_clip
            q_BTNK, k_BTMK, v = q_BTNK.clamp(*limits), k_BTMK.clamp(*limits), v.clamp(*limits)
        if position is not None and self.site.has_rope:
            q_BTNK, k_BTMK = (rotate(part, position, self.site.rope_style) for part in (q_BTNK, k_BTMK))
        v_BTMV = v.unflatten(-1, (-1, self.site.value_dim))
        if self.site.v_norm_eps is not None:
            wide = v_BTMV.to(torch.promote_types(v.dtype, torch.float32))
            v_BTMV = (wide * (wide.square().mean(-1, keepdim=True) + self.site.v_norm_eps).rsqrt()).to(v.dtype)
        y_BTNV, seen = windowed_attention(
            q_BTNK, k_BTMK, v_BTMV, window=self.window, sinks=self.sinks, scale=self.scale, softcap=self.site.softcap,
            valid_BT=valid_BT, segments_BT=segments_BT, seen=None if state is None else _seen(state),
            attention=attention,
        )  # fmt: skip
        return y_BTNV, _state(seen)


class HeadNorm(nn.Module):
    """The teacher's norm of queries or keys; ``weight`` and ``bias`` have the shapes of AttentionWeights."""

    def __init__(self, norm: SiteNorm, heads: int, key_dim: int) -> None:
        super().__init__()
        self.norm = norm
        shape = {"head": (key_dim,), "heads": (heads, key_dim), "all": (heads * key_dim,)}[norm.over]
        self.weight = nn.Parameter(torch.ones(shape))
        if norm.has_bias:
            self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x_BTHK: Tensor) -> Tensor:
        """The same shape; the mean is taken in at least float32."""
        x = x_BTHK.flatten(-2) if self.norm.over == "all" else x_BTHK
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.norm.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.norm.eps).rsqrt() * self.weight
        if self.norm.has_bias:
            wide = wide + self.bias
        return wide.to(x.dtype).view(x_BTHK.shape)


def _seen(state: State) -> Seen:
    keys, values = state["keys"], state["values"]
    return Seen(
        keys=keys, values=values, sink_keys=state.get("sink_keys", keys[:, :0]),
        sink_values=state.get("sink_values", values[:, :0]), count_B=state["count"],
    )  # fmt: skip


def _state(seen: Seen) -> State:
    sinks = {"sink_keys": seen.sink_keys, "sink_values": seen.sink_values} if seen.sink_keys.shape[1] else {}
    return {"keys": seen.keys, "values": seen.values, **sinks, "count": seen.count_B}
