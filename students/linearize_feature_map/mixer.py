"""Linear attention with feature maps in the place of one softmax attention, as LoLCATs has it (arXiv 2410.10254).

Softmax attention weighs the value of token s at token t by exp(q_t·k_s / sqrt(K)); here a product of features does:

    S_t = S_{t-1} + φ_k(k_t) v_tᵀ        z_t = z_{t-1} + φ_k(k_t)
    y_t = φ_q(q_t) S_t / (φ_q(q_t)·z_t + eps)              without the normaliser: y_t = φ_q(q_t) S_t

z is one more column of S, by values of 1. So numerator and denominator are made of the same rounded features, of sums
in fp32 and of one state, and the weights of an output add up to 1 across calls and packed documents too.
A window of softmax attention may share the denominator (``start_after``, ``sums``), as in LoLCATs: the sums then begin
where that window ends.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from linearize.errors import PluginError
from linearize.mixing.delay import delayed, empty_delay
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.start import at_least_fp32
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_feature_map.config import FeatureMapConfig
from linearize_feature_map.maps import Hedgehog, PositiveElu, T2r


class FeatureMapMixer(LinearMixer):
    """Its state is "memory" [B, N, F, V + 1] in fp32, the last column z ([B, N, F, V] without normaliser), and "conv".

    With ``start_after`` also "late" [B, W, M, K + V] and "late_count", the tokens that no sum has yet. The map of q is
    one per query head, that of k one per key head; they follow the rotary embedding.
    """

    config: FeatureMapConfig
    own_roles: ClassVar[Mapping[str, str]] = {"q_map": "feature_map", "k_map": "feature_map"}

    def __init__(self, config: FeatureMapConfig, site: AttentionSite) -> None:
        super().__init__(
            config, site, operation="gated", backend=config.backend, qk_norm=config.qk_norm, rope=config.rope
        )

    def add_parameters(self) -> None:
        """The W and b of both maps."""
        self.starts_after = 0
        self.q_map = make_map(self.config, self.site.num_heads, self.site.key_dim)
        self.k_map = make_map(self.config, self.num_key_value_heads, self.site.key_dim)

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": W is the identity, so that features start from q and k as they are. "scratch": W and b drawn."""
        self.q_map.initialize(style, generator)
        self.k_map.initialize(style, generator)

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """Sums of nothing and, with ``start_after``, no token on its way to them."""
        site, state = self.site, dict[str, Tensor]()
        if self.starts_after:
            width = site.key_dim + site.value_dim
            state = empty_delay(
                batch_size, self.starts_after, self.num_key_value_heads, width, device=device, dtype=dtype
            )
        shape = (
            batch_size,
            site.num_heads,
            num_features(self.config, site.key_dim),
            site.value_dim + self.config.normalizer,
        )
        memory = torch.zeros(shape, device=device, dtype=torch.promote_types(dtype, torch.float32))
        return {**state, "memory": memory}

    def recur(
        self,
        x_BTD: Tensor,
        q_BTNK: Tensor,
        k_BTMK: Tensor,
        v_BTMV: Tensor,
        *,
        valid_BT: Tensor | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """See :meth:`linearize.mixing.mixer.LinearMixer.recur`; a pad adds neither to S nor to z."""
        sums_BTNV, state = self._summed(q_BTNK, k_BTMK, v_BTMV, valid_BT, segments_BT, state)
        if not self.config.normalizer:
            return sums_BTNV, state
        dtype, sums_BTNV = sums_BTNV.dtype, at_least_fp32(sums_BTNV)
        average_BTNV = sums_BTNV[..., :-1] / (sums_BTNV[..., -1:] + self.config.normalizer_eps)
        return average_BTNV.to(dtype), state

    def start_after(self, tokens: int) -> None:
        """See :class:`linearize.protocols.AveragingMixer`.

        Raises:
            PluginError: the output is more or less than an average, by its norm, its gate or no normaliser.
        """
        wrong = [f"{name} = true" for name in ("output_norm", "gate") if getattr(self.config, name)]
        wrong += [] if self.config.normalizer else ["normalizer = false"]
        if wrong:
            raise PluginError(
                f"mixer 'feature_map' has {' and '.join(wrong)}, but its sums are to share a denominator with a "
                "window, which leaves no place for that; leave it out of this mixer's table"
            )
        self.starts_after = tokens

    def sums(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None,
        position: tuple[Tensor, Tensor] | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """See :class:`linearize.protocols.AveragingMixer`."""
        q_BTNK, k_BTMK, v_BTMV, conv_state = self.queries_keys_values(
            x_BTD, valid_BT=valid_BT, position=position, segments_BT=segments_BT, state=state
        )
        sums_BTNV, new_state = self._summed(q_BTNK, k_BTMK, v_BTMV, valid_BT, segments_BT, state)
        return at_least_fp32(sums_BTNV), conv_state | new_state

    def _summed(
        self, q_BTNK: Tensor, k_BTMK: Tensor, v_BTMV: Tensor, valid_BT: Tensor | None, segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Numerator and, with the normaliser, behind it denominator of each output."""
        late_state: State = {}
        if self.starts_after:
            late, valid_BT, late_state = delayed(
                torch.cat([k_BTMK, v_BTMV], -1), self.starts_after, valid_BT=valid_BT, segments_BT=segments_BT,
                state=state,
            )  # fmt: skip
            k_BTMK, v_BTMV = late.split([self.site.key_dim, self.site.value_dim], -1)
        q_BTNF, k_BTMF = self.q_map(q_BTNK), self.k_map(k_BTMK)
        if self.config.normalizer:
            v_BTMV = torch.cat([v_BTMV, torch.ones_like(v_BTMV[..., :1])], -1)
        no_decay_BTN = at_least_fp32(q_BTNF.new_zeros(1, 1, 1)).expand(q_BTNF.shape[:3])
        write_BTN = None
        if valid_BT is not None:
            write_BTN = valid_BT.unsqueeze(-1).expand(q_BTNF.shape[:3]).to(no_decay_BTN.dtype)
        sums_BTNV, memory = self.recurrence(q_BTNK.device, num_tokens=q_BTNK.shape[1]).kernel(
            q_BTNF, k_BTMF, v_BTMV, no_decay_BTN, write_BTN=write_BTN,
            state_BNKV=None if state is None else state["memory"], segments_BT=segments_BT,
            chunk_size=self.config.chunk_size,
        )  # fmt: skip
        return sums_BTNV, late_state | {"memory": memory}


def make_map(config: FeatureMapConfig, heads: int, key_dim: int) -> Hedgehog | T2r | PositiveElu:
    """The feature map that the options name."""
    rows = config.feature_dim or key_dim
    match config.map:
        case "hedgehog":
            return Hedgehog(heads, key_dim, rows)
        case "t2r":
            return T2r(heads, key_dim, rows)
        case "elu":
            return PositiveElu()


def num_features(config: FeatureMapConfig, key_dim: int) -> int:
    """F of the feature map that the options name."""
    rows = config.feature_dim or key_dim
    return 2 * rows if config.map == "hedgehog" else rows
