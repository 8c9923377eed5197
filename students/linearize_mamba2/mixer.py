"""Mamba-2 in the place of one softmax attention, as mmMamba sets it up (arXiv 2502.13145; Mamba-2: 2405.21060).

    v, k, q = act(conv([W_v x, W_k x, W_q x]))       dt = softplus(W_dt x + dt_bias)       A = -exp(A_log)
    S_t = exp(dt_t A) S_{t-1} + dt_t k_t v_tᵀ        y_t = q_t S_t + D v_t
    output = RMSNorm(y_t) · SiLU(W_g x)              per head, before the teacher's output projection

There is no 1/sqrt(K), and no rotary embedding unless the options ask for it. k and v are shared by query heads exactly
as in the teacher.
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
from linearize.mixing.start import softplus
from linearize.ops.gated import repeat_heads
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_mamba2.config import Mamba2Config

# Mamba-2's own range for the first time steps, and of mmMamba's mimic seeding.
DT_MIN, DT_MAX = 1e-3, 1e-1


class Mamba2Mixer(LinearMixer):
    """A Mamba-2 layer without its output projection; its state is "ssm" [B, N, K, V] in fp32, and "conv"."""

    config: Mamba2Config
    own_roles: ClassVar[Mapping[str, str]] = {"in_proj": "dt", "dt_bias": "decay", "A_log": "decay", "D": "skip"}

    def __init__(self, config: Mamba2Config, site: AttentionSite) -> None:
        super().__init__(
            config, site, operation="ssd" if config.dt_scales_input else "gated", backend=config.backend,
            qk_norm="rms" if config.qk_norm else "none", rope=config.rope,
        )  # fmt: skip

    def add_parameters(self) -> None:
        """W_dt, dt_bias, A_log and D."""
        heads = self.site.num_heads
        self.in_proj = nn.Linear(self.site.hidden_size, heads, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        if self.config.skip:
            self.D = nn.Parameter(torch.ones(heads))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """ "mimic" is mmMamba's, "scratch" is what its code does without mimic.

        "mimic": A = -e; dt is log-uniform in 1e-3 .. 1e-1 per head and does not depend on the input yet.
        "scratch": A in -16 .. -1, dt_bias 0.
        """
        if style == "mimic":
            self.in_proj.weight.zero_()
            self.A_log.fill_(1.0)
            dt = torch.exp(draw_uniform(self.dt_bias, math.log(DT_MIN), math.log(DT_MAX), generator))
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        else:
            fill_linear(self.in_proj, generator)
            self.dt_bias.zero_()
            self.A_log.copy_(draw_uniform(self.A_log, 1.0, 16.0, generator).log())
        if self.config.skip:
            self.D.fill_(0.0 if style == "mimic" else 1.0)

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """ "ssm": zeros [B, N, K, V]."""
        return {"ssm": self.empty_memory(batch_size, device=device, dtype=dtype)}

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

        All that decides the decay is at least fp32, also under autocast and in a bf16 model.
        """
        raw_BTN = self.in_proj(x_BTD)
        with torch.autocast(raw_BTN.device.type, enabled=False):
            dtype = torch.promote_types(raw_BTN.dtype, torch.float32)
            dt_BTN = softplus(raw_BTN.to(dtype) + self.dt_bias.to(dtype))
            a_N = -self.A_log.to(dtype).exp()
            if valid_BT is not None:
                dt_BTN = dt_BTN * valid_BT.unsqueeze(-1)
            if self.config.dt_scales_input:
                decay: dict[str, Tensor | None] = {"dt_BTN": dt_BTN, "a_N": a_N}
            else:
                write_BTN = None if valid_BT is None else valid_BT.unsqueeze(-1).expand_as(dt_BTN).to(dt_BTN.dtype)
                decay = {"g_BTN": dt_BTN * a_N, "write_BTN": write_BTN}
            y_BTNV, ssm = self.recurrence(x_BTD.device, num_tokens=x_BTD.shape[1]).kernel(
                q_BTNK, k_BTMK, v_BTMV, **decay, state_BNKV=None if state is None else state["ssm"],
                segments_BT=segments_BT, chunk_size=self.config.chunk_size,
            )  # fmt: skip
        if self.config.skip:
            y_BTNV = y_BTNV + self.D.to(y_BTNV.dtype).unsqueeze(-1) * repeat_heads(v_BTMV, self.site.num_heads, 2)
        return y_BTNV, {"ssm": ssm}
