"""Mamba-2 in the place of one softmax attention, as mmMamba sets it up (arXiv 2502.13145; Mamba-2: 2405.21060).

    v, k, q = act(conv([W_v x, W_k x, W_q x]))       dt = softplus(W_dt x + dt_bias)       A = -exp(A_log)
    S_t = exp(dt_t A) S_{t-1} + dt_t k_t v_tᵀ        y_t = q_t S_t + D v_t
    output = RMSNorm(y_t) · SiLU(W_g x)              per head, before the teacher's output projection

There is no rotary embedding and no 1/sqrt(K). k and v are shared by query heads exactly as in the teacher.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linearize.ops.backends import choose
from linearize.ops.gated import repeat_heads
from linearize.ops.norm import gated_rms_norm
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_mamba2.config import Mamba2Config

# Mamba-2's own range for the first time steps, and of mmMamba's mimic seeding.
DT_MIN, DT_MAX = 1e-3, 1e-1
GATE_GAIN = 2**-2.5
FP32_PARAMETERS = ("dt_bias", "A_log")


class Mamba2Mixer(nn.Module):
    """A Mamba-2 layer without its output projection; heads and widths come from the site."""

    projections: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

    def __init__(self, config: Mamba2Config, site: AttentionSite) -> None:
        super().__init__()
        self.config, self.site = config, site
        width, heads, groups = site.hidden_size, site.num_heads, site.num_key_value_heads
        self.q_width, self.k_width, self.v_width = heads * site.key_dim, groups * site.key_dim, groups * site.value_dim
        self.q_proj = nn.Linear(width, self.q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, self.k_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, self.v_width, bias=config.qkv_bias)
        if config.conv_width:
            channels = self.v_width + self.k_width + self.q_width
            self.conv1d = nn.Conv1d(channels, channels, config.conv_width, groups=channels)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(site.key_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(site.key_dim, eps=config.norm_eps)
        self.in_proj = nn.Linear(width, heads, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        if config.skip:
            self.D = nn.Parameter(torch.ones(heads))
        if config.output_norm:
            self.g_norm = nn.RMSNorm(site.value_dim, eps=config.norm_eps)
        if config.gate:
            self.g_proj = nn.Linear(width, heads * site.value_dim, bias=False)

    def roles(self) -> Mapping[str, frozenset[str]]:
        """Every parameter name with its roles."""
        finer = {"conv1d": "conv", "g_proj": "gate", "g_norm": "norm", "q_norm": "norm", "k_norm": "norm",
                 "in_proj": "dt", "dt_bias": "decay", "A_log": "decay", "D": "skip"}  # fmt: skip
        qkv = set(self.projections.values())
        return {
            name: frozenset({"qkv"}) if (part := name.split(".")[0]) in qkv else frozenset({"new", finer[part]})
            for name, _ in self.named_parameters()
        }

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Sets every "new" parameter, and for "scratch" the projections of q, k and v too.

        "mimic" is mmMamba's: the convolution passes its input through, A = -e, dt is log-uniform in 1e-3 .. 1e-1 per
        head and does not depend on the input yet. "scratch" is what mmMamba's code does without mimic: A in -16 .. -1,
        dt_bias 0, PyTorch's ranges for linear layers and convolutions. The gate is Xavier with gain 2^-2.5 in both.
        """
        mimic = style == "mimic"
        if mimic:
            self.in_proj.weight.zero_()
            self.A_log.fill_(1.0)
            low, high = math.log(DT_MIN), math.log(DT_MAX)
            dt = torch.exp(_uniform(self.dt_bias, low, high, generator))
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        else:
            for linear in (self.q_proj, self.k_proj, self.v_proj, self.in_proj):
                bound = linear.in_features**-0.5
                for parameter in linear.parameters():
                    parameter.copy_(_uniform(parameter, -bound, bound, generator))
            self.dt_bias.zero_()
            self.A_log.copy_(_uniform(self.A_log, 1.0, 16.0, generator).log())
        if self.config.conv_width:
            if mimic:
                self.conv1d.weight.zero_()
                self.conv1d.weight[:, 0, -1] = 1.0
                nn.init.zeros_(self.conv1d.bias)  # type: ignore[arg-type]
            else:
                bound = self.config.conv_width**-0.5
                for parameter in self.conv1d.parameters():
                    parameter.copy_(_uniform(parameter, -bound, bound, generator))
        if self.config.gate:
            bound = GATE_GAIN * math.sqrt(6.0 / (self.g_proj.in_features + self.g_proj.out_features))
            self.g_proj.weight.copy_(_uniform(self.g_proj.weight, -bound, bound, generator))
        if self.config.skip:
            self.D.fill_(0.0 if mimic else 1.0)
        for name in ("g_norm", "q_norm", "k_norm"):
            if hasattr(self, name):
                getattr(self, name).weight.fill_(1.0)

    def describe_backends(self, device: torch.device | str) -> list[str]:
        """One line for each kernel that this mixer runs on ``device``.

        Raises:
            BackendError: one that its options name cannot run there.
        """
        recurrence = "ssd" if self.config.dt_scales_input else "gated"
        choices = [choose(recurrence, self.config.backend, device)]
        if self.config.conv_width:
            choices.append(choose("conv", self.config.conv_backend, device))
        return [choice.describe() for choice in choices]

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """See :class:`linearize.protocols.Mixer`; ``position`` is not used.

        The state holds "ssm" [B, N, K, V] in fp32 and, with a convolution, "conv" [B, C, W-1].
        """
        new_state: State = {}
        vkq_BTC = self._project(x_BTD)
        if self.config.conv_width:
            convolve = choose("conv", self.config.conv_backend, x_BTD.device).kernel
            vkq_BTC, new_state["conv"] = convolve(
                vkq_BTC, self.conv1d.weight.squeeze(1), self.conv1d.bias,
                activation=self.config.conv_activation, state_BCX=None if state is None else state["conv"],
                valid_BT=valid_BT, segments_BT=segments_BT,
            )  # fmt: skip
        v, k, q = vkq_BTC.split([self.v_width, self.k_width, self.q_width], -1)
        v_BTMV = v.unflatten(-1, (-1, self.site.value_dim))
        k_BTMK = k.unflatten(-1, (-1, self.site.key_dim))
        q_BTNK = q.unflatten(-1, (-1, self.site.key_dim))
        if self.config.qk_norm:
            q_BTNK, k_BTMK = self.q_norm(q_BTNK), self.k_norm(k_BTMK)
        y_BTNV, new_state["ssm"] = self._recur(
            q_BTNK, k_BTMK, v_BTMV, self.in_proj(x_BTD), valid_BT,
            state_BNKV=None if state is None else state["ssm"], segments_BT=segments_BT,
            chunk_size=self.config.chunk_size,
        )  # fmt: skip
        if self.config.skip:
            y_BTNV = y_BTNV + self.D.to(y_BTNV.dtype).unsqueeze(-1) * repeat_heads(v_BTMV, self.site.num_heads, 2)
        return self._norm_and_gate(x_BTD, y_BTNV), new_state

    def _project(self, x_BTD: Tensor) -> Tensor:
        """v, k and q side by side, in the order in which the convolution takes them."""
        parts = self.v_proj, self.k_proj, self.q_proj
        if x_BTD.shape[1] == 1:
            return torch.cat([part(x_BTD) for part in parts], -1)
        # One product over joined weights: for a sequence the copy of the weights costs less than that of the results.
        bias = torch.cat([part.bias for part in parts]) if self.config.qkv_bias else None
        return F.linear(x_BTD, torch.cat([part.weight for part in parts]), bias)

    def _norm_and_gate(self, x_BTD: Tensor, y_BTNV: Tensor) -> Tensor:
        gate = self.g_proj(x_BTD).view(y_BTNV.shape) if self.config.gate else None
        if gate is not None and self.config.output_norm:
            return gated_rms_norm(y_BTNV, self.g_norm.weight, gate, self.config.norm_eps)
        if self.config.output_norm:
            return self.g_norm(y_BTNV)
        return y_BTNV if gate is None else y_BTNV * F.silu(gate)

    def _recur(
        self, q_BTNK: Tensor, k_BTMK: Tensor, v_BTMV: Tensor, raw_BTN: Tensor, valid_BT: Tensor | None, **rest: Any
    ) -> tuple[Tensor, Tensor]:
        """The recurrence; all that decides the decay is at least fp32, also under autocast and in a bf16 model."""
        with torch.autocast(raw_BTN.device.type, enabled=False):
            dtype = torch.promote_types(raw_BTN.dtype, torch.float32)
            dt_BTN = F.softplus(raw_BTN.to(dtype) + self.dt_bias.to(dtype))
            a_N = -self.A_log.to(dtype).exp()
            if valid_BT is not None:
                dt_BTN = dt_BTN * valid_BT.unsqueeze(-1)
            if self.config.dt_scales_input:
                kernel = choose("ssd", self.config.backend, raw_BTN.device).kernel
                return kernel(q_BTNK, k_BTMK, v_BTMV, dt_BTN, a_N, **rest)
            kernel = choose("gated", self.config.backend, raw_BTN.device).kernel
            write_BTN = None if valid_BT is None else valid_BT.unsqueeze(-1).expand_as(dt_BTN).to(dt_BTN.dtype)
            return kernel(q_BTNK, k_BTMK, v_BTMV, dt_BTN * a_N, write_BTN=write_BTN, **rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as usual, except that dt_bias and A_log keep fp32 where the model becomes bf16 or fp16."""
        before = {name: getattr(self, name).detach() for name in FP32_PARAMETERS}
        super()._apply(fn, recurse)
        for name, old in before.items():
            parameter = getattr(self, name)
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = old.to(parameter.device, torch.float32)
        return self


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Drawn on the generator's device, so that a seed gives the same numbers wherever the mixer lies."""
    drawn = torch.empty(like.shape, device=generator.device)
    return drawn.uniform_(low, high, generator=generator).to(like.device)
