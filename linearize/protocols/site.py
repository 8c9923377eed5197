"""What an adapter says of one softmax attention of the teacher: its shape, and its weights as plain projections.

Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K and V width of one key and value head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNorm:
    """The norm of a site's queries, and the like one of its keys.

    Attributes:
        kind: as in :class:`AttentionWeights`.
        over: "head": each head by itself with one weight [K] for all; "heads": each head by itself with its own weight
            [N, K]; "all": all heads together, [N*K].
        has_bias: whether something is added to what is normalised and multiplied.
        eps: added to the mean square, or to the variance.
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "heads", "all"] = "head"
    has_bias: bool = False
    eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSite:
    """One softmax attention of the teacher's decoder, known from the configuration alone.

    Attributes:
        index: position in execution order through the whole decoder, from 0, whatever towers it has.
        path: dotted path of the attention module inside the model.
        tower: name of the stack that it belongs to, such as "embedding" or "language".
        layer: index inside its tower.
        num_layers: how many layers its tower has; 0 where the adapter does not say.
        cache_index: its slot in transformers' Cache.
        key_dim: K, width of one query or key head.
        value_dim: V, width of one value head.
        output_projection: attribute of the attention module that holds the nn.Linear from N*V to D.
        has_rope: whether the attention turns queries and keys; where not, mixers get no position.
        rope_style: which numbers of a head turn together: "half": i and i + width/2; "interleaved": 2i and 2i + 1.
        qkv_bias: whether any of the q, k and v projections has a bias.
        qk_norm: the norm of queries and keys; None without one.
        v_norm_eps: values are divided by the root of this plus their mean square, each head by itself; None: they are
            not.
        qkv_clip: queries, keys and values are clamped to ± this, behind their norms and before they are turned; None:
            they are not.
        scale: factor on q·k before the softmax; None: 1/sqrt(K).
        window: sliding window in tokens, the query's own included; None for full causal attention.
        softcap: scores s become softcap * tanh(s / softcap); None: they stay.
        own_mask: whether the decoder's mask lets a token see others than those before it inside the window, as tokens
            of one image each other. No mixer does, so an adapter that says so has a caveat for it.
        sharpens_from: from this token on, counted from 0, queries are multiplied by a factor that grows with the
            position, which no mixer does either; None: none are.
        fully_described: whether the fields here and those of :class:`AttentionWeights` say all that the attention
            does. Where not (attention sinks, say), nothing compares them with the model, and the adapter has a caveat
            that says what is missing.
    """

    index: int
    path: str
    tower: str
    layer: int
    cache_index: int
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    key_dim: int
    value_dim: int
    output_projection: str = "o_proj"
    num_layers: int = 0
    has_rope: bool = True
    rope_style: Literal["half", "interleaved"] = "half"
    qkv_bias: bool = False
    qk_norm: SiteNorm | None = None
    v_norm_eps: float | None = None
    qkv_clip: float | None = None
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    own_mask: bool = False
    sharpens_from: int | None = None
    fully_described: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """The weights of one site as separate projections, however the teacher stores them.

    What the site says too (biases, norms, scale, window, softcap, rotary embedding) is the same here.

    Attributes:
        q: [N*K, D]. k: [M*K, D]. v: [M*V, D]. o: [D, N*V]. Rows are head-major; query head j reads key-value head
            j // (N//M).
        q_norm, k_norm: what multiplies a normalised query and key: [K] or [N, K] over each head by itself, [N*K] over
            all heads together (k: M for N). None without a norm.
        q_norm_bias, k_norm_bias: what is added after that; in the same shapes.
        norm: the kind of these norms; norm_eps: what they add to the mean square, or to the variance.
        v_norm_eps: values are divided by the root of this plus their mean square, each head by itself; None: they are
            not.
        gate, gate_bias: [N*V, D] and [N*V]: the output is multiplied by sigmoid(gate · x + gate_bias) before the output
            projection. None: it is not.
        scale: factor on q·k before the softmax.
        rope_theta: base of the rotary embedding; None without one.
        rope_style: which numbers of a head turn together: "half": i and i + width/2; "interleaved": 2i and 2i + 1.
        window: sliding window in tokens, the query's own included; None for full causal attention.
        softcap: scores s become softcap * tanh(s / softcap); None: they stay.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    q_norm_bias: Tensor | None = None
    k_norm_bias: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    v_norm_eps: float | None = None
    scale: float
    rope_theta: float | None = None
    rope_style: Literal["half", "interleaved"] = "half"
    window: int | None = None
    softcap: float | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is there, by field name: what a seeder has to account for."""
        named = {name: getattr(self, name) for name in
                 ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias",
                  "q_norm", "k_norm", "q_norm_bias", "k_norm_bias", "gate", "gate_bias")}  # fmt: skip
        return {name: tensor for name, tensor in named.items() if tensor is not None}
