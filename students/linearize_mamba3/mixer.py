"""Mamba-3 in the place of one softmax attention (arXiv 2603.15569), with single input and single output (SISO).

    v = W_v x        k, q = RMSNorm(W_k x) + b_k, RMSNorm(W_q x) + b_q            biases of each query head
    dt = softplus(W_dt x + dt_bias)    A = -max(softplus(W_A x), floor)    λ = sigmoid(W_λ x)    θ = π tanh(W_θ x) dt
    φ_t = φ_{t-1} + θ_t                        each pair of channels of q_t and k_t is turned by its angle in φ_t
    S_t = α_t S_{t-1} + α_t (1 - λ_t) dt_t k_{t-1} v_{t-1}ᵀ + λ_t dt_t k_t v_tᵀ          α_t = exp(dt_t A_t)
    y_t = q_t S_t + D v_t
    output = RMSNorm(y_t) · SiLU(W_g x)        per head, before the teacher's output projection

as mamba_ssm 2.3 computes it, where k, q and v are called B, C and x. Heads share W_θ and differ in dt; there is no
short convolution.
Where this differs: k and v are shared by query heads as in the teacher; pairs are channels i and i + K/2, not 2i and
2i + 1, which renames channels and lets the teacher's rotary embedding, kept with ``rope``, turn the same pairs where it
turns whole heads; the output norm, an option there, is on as in all mixers here.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from linearize.errors import PluginError
from linearize.mixing.draw import draw_uniform, fill_linear
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.start import at_least_fp32, softplus, spread_horizons
from linearize.ops.gated import repeat_heads
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_mamba3.angles import sum_angles, turn
from linearize_mamba3.config import Mamba3Config
from linearize_mamba3.trapezoid import Carried, trapezoidal_recurrence

# mamba_ssm/modules/mamba3.py: dt_min, dt_max, dt_init_floor.
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class BiasedNorm(nn.RMSNorm):
    """RMSNorm over each head with one weight for all, then for each query head a bias of its own."""

    def __init__(self, heads: int, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x_BTHK: Tensor) -> Tensor:
        """[B, T, N, K] from as many heads or fewer."""
        return repeat_heads(super().forward(x_BTHK), self.bias.shape[0], 2) + self.bias.to(x_BTHK.dtype)


class Mamba3Mixer(LinearMixer):
    """A Mamba-3 layer without its output projection.

    The state is "ssm" [B, N, K, V] in fp32, "angle" [B, N, P] in fp64, and of the last token "last_key" [B, N, K] and
    "last_value" [B, M, V] in the model's dtype.

    Raises:
        PluginError: (from the constructor) ``angle_fraction`` leaves no pair of channels to turn.
    """

    config: Mamba3Config
    q_norm: BiasedNorm
    k_norm: BiasedNorm
    own_roles: ClassVar[Mapping[str, str]] = {
        "dt_proj": "dt", "dt_bias": "decay", "A_proj": "decay_input", "trapezoid_proj": "dt", "angle_proj": "angle",
        "D": "skip",
    }  # fmt: skip

    def __init__(self, config: Mamba3Config, site: AttentionSite) -> None:
        super().__init__(config, site, operation="gated", backend=config.backend, rope=config.rope)

    def add_parameters(self) -> None:
        """The norms and biases of k and q, W_dt, dt_bias, W_A, W_λ, W_θ and D."""
        width, heads, key_dim = self.site.hidden_size, self.site.num_heads, self.site.key_dim
        self.num_pairs = int(key_dim * self.config.angle_fraction) // 2
        if self.num_pairs == 0:
            raise PluginError(
                f"mixer 'mamba3' turns pairs of channels, but angle_fraction = {self.config.angle_fraction} of the "
                f"{key_dim} channels of a key at site {self.site.index} is less than one pair; set "
                f"angle_fraction to at least {2 / key_dim:.3g} in this mixer's table"
            )
        self.q_norm = BiasedNorm(heads, key_dim, self.config.norm_eps)
        self.k_norm = BiasedNorm(heads, key_dim, self.config.norm_eps)
        self.dt_proj = nn.Linear(width, heads, bias=False)
        self.A_proj = nn.Linear(width, heads, bias=False)
        self.trapezoid_proj = nn.Linear(width, heads, bias=False)
        self.angle_proj = nn.Linear(width, self.num_pairs, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        if self.config.skip:
            self.D = nn.Parameter(torch.ones(heads))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic": all four projections 0, so that A = -log 2, λ = 1/2 and no angle grows; dt spreads the heads'
        horizons over 16 .. 1024 tokens; D is 0.

        "scratch": mamba_ssm's, dt log-uniform in 0.001 .. 0.1 per head, D 1, PyTorch's range for the projections.
        The biases of q and k are 1 in both: their product is a score that every key gets, as softmax gives exp(0) to a
        key that does not fit.
        """
        is_mimic = style == "mimic"
        for linear in (self.dt_proj, self.A_proj, self.trapezoid_proj, self.angle_proj):
            if is_mimic:
                linear.weight.zero_()
            else:
                fill_linear(linear, generator)
        if is_mimic:
            dt = 1 / (spread_horizons(self.site.num_heads) * math.log(2))
        else:
            dt = draw_uniform(self.dt_bias, math.log(DT_MIN), math.log(DT_MAX), generator).exp().clamp_min(DT_FLOOR)
        # The inverse of softplus.
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        for norm in (self.q_norm, self.k_norm):
            norm.bias.fill_(1.0)
        if self.config.skip:
            self.D.fill_(0.0 if is_mimic else 1.0)

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """As the class describes it: nothing was written, no angle has grown, and the token before is all zeros."""
        heads, groups = self.site.num_heads, self.num_key_value_heads
        return {
            "ssm": self.empty_memory(batch_size, device=device, dtype=dtype),
            "angle": torch.zeros(batch_size, heads, self.num_pairs, device=device, dtype=torch.float64),
            "last_key": torch.zeros(batch_size, heads, self.site.key_dim, device=device, dtype=dtype),
            "last_value": torch.zeros(batch_size, groups, self.site.value_dim, device=device, dtype=dtype),
        }

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
        """See :meth:`linearize.mixing.mixer.LinearMixer.recur`; ``k_norm`` has given each query head its own keys.

        All that decides decays and angles is at least fp32, also under autocast and in a bf16 model.
        """
        k_BTNK = k_BTMK
        # The teacher's pairs where its rotary embedding is used: two rotations of one plane are one rotation.
        style = self.site.rope_style if self.rope and self.site.has_rope else "half"
        projections = self.dt_proj, self.A_proj, self.trapezoid_proj, self.angle_proj
        raw_dt, raw_a, raw_own, raw_angle = (at_least_fp32(projection(x_BTD)) for projection in projections)
        heads = self.site.num_heads
        with torch.autocast(x_BTD.device.type, enabled=False):
            dt_BTN = softplus(raw_dt + self.dt_bias.to(raw_dt.dtype))
            if valid_BT is not None:
                dt_BTN = dt_BTN * valid_BT.unsqueeze(-1)
            g_BTN = -dt_BTN * softplus(raw_a).clamp_min(self.config.decay_floor)
            turns_BTNP = math.pi * raw_angle.tanh().unsqueeze(2) * dt_BTN.unsqueeze(-1)
            angles_BTNP, angle_BNP = sum_angles(turns_BTNP, None if state is None else state["angle"])
            carried = None if state is None else Carried(state["ssm"], state["last_key"], state["last_value"])
            y_BTNV, carried = trapezoidal_recurrence(
                self.recurrence(x_BTD.device, num_tokens=x_BTD.shape[1]).kernel,
                turn(q_BTNK, angles_BTNP, style), turn(k_BTNK, angles_BTNP, style), v_BTMV, g_BTN, dt_BTN,
                raw_own.sigmoid(), carried=carried, valid_BT=valid_BT, segments_BT=segments_BT,
                chunk_size=self.config.chunk_size,
            )  # fmt: skip
        if self.config.skip:
            y_BTNV = y_BTNV + self.D.to(y_BTNV.dtype).unsqueeze(-1) * repeat_heads(v_BTMV, heads, 2)
        return y_BTNV, {
            "ssm": carried.state, "angle": angle_BNP, "last_key": carried.key, "last_value": carried.value,
        }  # fmt: skip
