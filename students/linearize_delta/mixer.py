"""DeltaNet, Gated DeltaNet and Kimi Delta Attention (KDA) in the place of one softmax attention.

    q, k = rotary(unit length(q)), rotary(unit length(k))               after projections and convolution, per head
    β = sigmoid(W_b x + b_b)                                            per head; times 2 with negative eigenvalues
    g = 0                                                               DeltaNet (arXiv 2406.06484)
    g = -exp(A_log) softplus(W_a x + dt_bias)                           Gated DeltaNet (2412.06464), per head
    g = -exp(A_log) softplus(W_f2 W_f1 x + dt_bias)                     KDA (2510.26692), per key channel
    S_t = exp(g_t) S_{t-1} + β_t k_t (v_t - k_tᵀ exp(g_t) S_{t-1})ᵀ     y_t = q_t S_t
    output = RMSNorm(y_t) · SiLU(W_g x)                                 per head, before the teacher's output projection

Where this differs from the papers: no SiLU follows the convolution unless it is asked for, as q and k of attention are
compared by their signs; β has a bias, for "mimic" to start from; y has no 1/sqrt(K), which the output norm would undo,
so that a query equal to a key gives its value back; the rotary embedding is the teacher's; KDA's output gate is the one
that all mixers here have, SiLU and of full rank, and not a sigmoid of low rank.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from linearize.mixing.draw import draw_uniform, fill_linear
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.start import at_least_fp32, softplus, spread, spread_horizons
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_delta.config import DeltaNetConfig, GatedDeltaNetConfig, KdaConfig

# Mamba-2's range for first time steps, which Gated DeltaNet and KDA take over.
DT_MIN, DT_MAX = 1e-3, 1e-1
# Write strengths of "mimic": from an average over two tokens with like keys to one over twenty. Heads that forget
# slowly (the last ones) write softly.
BETA_FIRST, BETA_LAST = 0.5, 0.05


class DeltaNetMixer(LinearMixer):
    """A DeltaNet layer without its output projection; its state is "delta" [B, N, K, V] in fp32, and "conv"."""

    config: DeltaNetConfig
    own_roles: ClassVar[Mapping[str, str]] = {"b_proj": "beta"}

    def __init__(self, config: DeltaNetConfig, site: AttentionSite) -> None:
        super().__init__(config, site, operation="delta", backend=config.backend, qk_norm="l2", rope=config.rope)

    def add_parameters(self) -> None:
        """W_b and its bias."""
        self.b_proj = nn.Linear(self.site.hidden_size, self.site.num_heads)

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": β is spread over 0.5 .. 0.05 from the first head to the last, the same for every input yet.

        Softmax attention averages over the values of keys that fit; a small β does so too, a β of 1 keeps the last.
        "scratch": PyTorch's range for W_b, and no bias, so that β starts around its middle, as in the papers.
        """
        if style == "mimic":
            self.b_proj.weight.zero_()
            self.b_proj.bias.copy_(torch.logit(spread(BETA_FIRST, BETA_LAST, self.site.num_heads) / self.largest_beta))
        else:
            fill_linear(self.b_proj, generator)
            self.b_proj.bias.zero_()

    @property
    def largest_beta(self) -> float:
        """What β stays below."""
        return 2.0 if self.config.negative_eigenvalues else 1.0

    def log_decay(self, x_BTD: Tensor) -> Tensor | None:
        """g, at least fp32: [B, T, N], or [B, T, N, K]; None: nothing decays."""
        del x_BTD
        return None

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """ "delta": zeros [B, N, K, V]."""
        return {"delta": self.empty_memory(batch_size, device=device, dtype=dtype)}

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
        """See :meth:`linearize.mixing.mixer.LinearMixer.recur`.

        β and the decay are at least fp32, also under autocast and in a bf16 model.
        """
        raw_BTN = self.b_proj(x_BTD)
        g = self.log_decay(x_BTD)
        with torch.autocast(x_BTD.device.type, enabled=False):
            beta_BTN = self.largest_beta * at_least_fp32(raw_BTN).sigmoid()
            if valid_BT is not None:
                beta_BTN = beta_BTN * valid_BT.unsqueeze(-1)
                if g is not None:
                    g = g * valid_BT[(...,) + (None,) * (g.dim() - 2)]
            y_BTNV, delta = self.recurrence(x_BTD.device, num_tokens=x_BTD.shape[1]).kernel(
                q_BTNK, k_BTMK, v_BTMV, beta_BTN, g, state_BNKV=None if state is None else state["delta"],
                segments_BT=segments_BT, chunk_size=self.config.chunk_size,
            )  # fmt: skip
        return y_BTNV, {"delta": delta}


class GatedDeltaNetMixer(DeltaNetMixer):
    """A Gated DeltaNet layer without its output projection; the state is DeltaNet's."""

    config: GatedDeltaNetConfig
    own_roles: ClassVar[Mapping[str, str]] = {
        "b_proj": "beta", "a_proj": "decay_input", "A_log": "decay", "dt_bias": "decay",
    }  # fmt: skip

    def add_parameters(self) -> None:
        """DeltaNet's, W_a, A_log and dt_bias."""
        super().add_parameters()
        heads = self.site.num_heads
        self.a_proj = nn.Linear(self.site.hidden_size, heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.zeros(heads, dtype=torch.float32))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": β as in DeltaNet; A = 1 and dt_bias spreads the heads' horizons over 16 .. 1024 tokens, W_a = 0.

        "scratch": Mamba-2's and the paper's, A in 1 .. 16, the time step softplus(dt_bias) in 0.001 .. 0.1, PyTorch's
        range for W_a.
        """
        super().initialize_own(style, generator)
        initialize_decay(style, self.a_proj, self.A_log, self.dt_bias, generator)

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g [B, T, N]."""
        return log_decay(self.a_proj(x_BTD), self.A_log, self.dt_bias)


class KdaMixer(DeltaNetMixer):
    """A Kimi Delta Attention layer without its output projection; the state is DeltaNet's."""

    config: KdaConfig
    own_roles: ClassVar[Mapping[str, str]] = {
        "b_proj": "beta", "f_proj_down": "decay_input", "f_proj_up": "decay_input",
        "A_log": "decay", "dt_bias": "decay",
    }  # fmt: skip

    def add_parameters(self) -> None:
        """DeltaNet's, W_f1 and W_f2, A_log per head and dt_bias per channel."""
        super().add_parameters()
        heads, key_dim = self.site.num_heads, self.site.key_dim
        rank = self.config.decay_rank or key_dim
        self.f_proj_down = nn.Linear(self.site.hidden_size, rank, bias=False)
        self.f_proj_up = nn.Linear(rank, heads * key_dim, bias=False)
        self.A_log = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.zeros(heads * key_dim, dtype=torch.float32))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """As Gated DeltaNet's, with W_f2 for W_a; W_f1 is drawn in both styles.

        "mimic" starts the channels of a head alike, so that the rotary embedding still depends on distances alone.
        "scratch" draws a time step for each channel.
        """
        super().initialize_own(style, generator)
        fill_linear(self.f_proj_down, generator)
        initialize_decay(style, self.f_proj_up, self.A_log, self.dt_bias, generator)

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """g [B, T, N, K]."""
        raw_BTNK = self.f_proj_up(self.f_proj_down(x_BTD)).unflatten(-1, (-1, self.site.key_dim))
        return log_decay(raw_BTNK, self.A_log.unsqueeze(-1), self.dt_bias.view(-1, self.site.key_dim))


def log_decay(raw: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """-exp(A_log) softplus(raw + dt_bias), at least fp32, also under autocast."""
    with torch.autocast(raw.device.type, enabled=False):
        dtype = torch.promote_types(raw.dtype, torch.float32)
        return -a_log.to(dtype).exp() * softplus(raw.to(dtype) + dt_bias.to(dtype))


def initialize_decay(
    style: SeedStyle, projection: nn.Linear, a_log_N: Tensor, dt_bias: Tensor, generator: torch.Generator
) -> None:
    """Sets what ``log_decay`` reads; ``dt_bias`` is [N] or [N·K]."""
    if style == "mimic":
        projection.weight.zero_()
        a_log_N.zero_()
        heads = len(a_log_N)
        dt = (1 / spread_horizons(heads)).repeat_interleave(len(dt_bias) // heads)
    else:
        fill_linear(projection, generator)
        a_log_N.copy_(draw_uniform(a_log_N, 1.0, 16.0, generator).log())
        dt = torch.exp(draw_uniform(dt_bias, math.log(DT_MIN), math.log(DT_MAX), generator))
    # The inverse of softplus.
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
