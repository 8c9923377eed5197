"""A sound mixer, one without a base class of ours, and mixers with one fault each, for the tests of the kit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor, nn

from linearize.mixing.empty import without_tokens
from linearize.mixing.mixer import LinearMixer
from linearize.mixing.norms import norm_and_gate
from linearize.mixing.options import LinearMixerOptions
from linearize.protocols import AttentionSite, SeedStyle, State


class Options(LinearMixerOptions):
    """Options of the sound mixer."""


class Sound(LinearMixer):
    """S_t = exp(g) S_{t-1} + k_t v_tᵀ with one learnt g per head; keeps every promise."""

    own_roles: ClassVar[Mapping[str, str]] = {"decay": "decay"}

    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(
            config, site, operation="gated", backend=config.backend, qk_norm=config.qk_norm, rope=config.rope
        )

    def add_parameters(self) -> None:
        self.decay = nn.Parameter(torch.zeros(self.site.num_heads))

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.decay.fill_(2.0 if style == "mimic" else 0.0)

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        return F.logsigmoid(self.decay).expand(*x_BTD.shape[:2], -1)

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        return {"memory": self.empty_memory(batch_size, device=device, dtype=dtype)}

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
        g_BTN, write_BTN = self.log_decay(x_BTD), None
        if valid_BT is not None:
            write_BTN = valid_BT.unsqueeze(-1).expand_as(g_BTN).to(g_BTN.dtype)
            g_BTN = g_BTN * write_BTN
        y_BTNV, memory = self.recurrence(x_BTD.device).kernel(
            q_BTNK, k_BTMK, v_BTMV, g_BTN, write_BTN=write_BTN, segments_BT=segments_BT,
            state_BNKV=None if state is None else state["memory"],
        )  # fmt: skip
        return y_BTNV, {"memory": memory}


class WrongAfterAChunk(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        length = x_BTD.shape[1]
        if length > 1 and length % 64 == 1:
            y = torch.cat([y[:, :-1], y[:, -1:] / 2], 1)
        return y, state


class NormalisedOverTheSequence(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        if x_BTD.shape[1] == 0:
            return y, state
        return y * (100 / x_BTD.detach().abs().amax()).clamp(max=1), state


class WithoutMemory(Sound):
    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        return {"memory": torch.zeros(batch_size, device=device, dtype=dtype)}

    def recur(self, x_BTD: Tensor, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> tuple[Tensor, State]:
        apart = torch.arange(x_BTD.shape[1]).expand(len(x_BTD), -1)
        y, _ = super().recur(x_BTD, q, k, v, valid_BT=more["valid_BT"], segments_BT=apart, state=None)
        return y * self.log_decay(x_BTD).unsqueeze(-1), {"memory": x_BTD.new_zeros(len(x_BTD))}


class DecodesWithoutDecay(Sound):
    def recur(self, x_BTD: Tensor, *qkv: Tensor, state: State | None, **more: Any) -> tuple[Tensor, State]:
        if x_BTD.shape[1] == 1 and state is not None:
            state = {"memory": state["memory"] / self.log_decay(x_BTD)[:, 0, :, None, None].exp()}
        return super().recur(x_BTD, *qkv, state=state, **more)


class PrefillForgetsTheState(Sound):
    def recur(self, x_BTD: Tensor, *qkv: Tensor, state: State | None, **more: Any) -> tuple[Tensor, State]:
        return super().recur(x_BTD, *qkv, state=state if x_BTD.shape[1] == 1 else None, **more)


class IgnoresSegments(Sound):
    def recur(self, *inputs: Tensor, segments_BT: Tensor | None, **more: Any) -> tuple[Tensor, State]:
        return super().recur(*inputs, segments_BT=None, **more)


class ConvolvesOverPads(Sound):
    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(config, site)
        convolve = self.conv1d.forward
        self.conv1d.forward = lambda x, **more: convolve(x, **{**more, "valid_BT": None})  # type: ignore[method-assign]


class DecaysAtPads(Sound):
    def recur(self, x_BTD: Tensor, *qkv: Tensor, valid_BT: Tensor | None, **more: Any) -> tuple[Tensor, State]:
        if valid_BT is None:
            return super().recur(x_BTD, *qkv, valid_BT=None, **more)
        q, k, v = qkv
        return super().recur(x_BTD, q, k * valid_BT[..., None, None], v, valid_BT=None, **more)


class KeepsItsInputs(Sound):
    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        memory = super().empty_recurrent_state(batch_size, device=device, dtype=dtype)
        return memory | {"inputs": torch.zeros(batch_size, 1, self.site.hidden_size, device=device, dtype=dtype)}

    def forward(self, x_BTD: Tensor, *, state: State | None = None, **more: Any) -> tuple[Tensor, State]:
        y, new = super().forward(x_BTD, state=state, **more)
        if x_BTD.shape[1] == 0:
            return y, new
        return y, new | {"inputs": x_BTD if state is None else torch.cat([state["inputs"], x_BTD], 1)}


class KeepsHeadsFirst(Sound):
    def empty_recurrent_state(self, *size: Any, **more: Any) -> State:
        return {"memory": super().empty_recurrent_state(*size, **more)["memory"].transpose(0, 1)}

    def recur(self, *inputs: Tensor, state: State | None, **more: Any) -> tuple[Tensor, State]:
        state = None if state is None else {"memory": state["memory"].transpose(0, 1)}
        y, new = super().recur(*inputs, state=state, **more)
        return y, {"memory": new["memory"].transpose(0, 1)}


class DetachesItsDecay(Sound):
    def log_decay(self, x_BTD: Tensor) -> Tensor:
        return super().log_decay(x_BTD).detach()


class DoublesGradients(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        return 2 * y - y.detach(), state


class LeavesNothingOut(Sound):
    branches = ("memory", "nothing")
    left_out: frozenset[str] = frozenset()


class NeverDecaysInBf16(Sound):
    def log_decay(self, x_BTD: Tensor) -> Tensor:
        return super().log_decay(x_BTD) * (x_BTD.dtype != torch.bfloat16)


class OffByAFactor(Sound):
    def forward(self, x_BTD: Tensor, **more: Any) -> tuple[Tensor, State]:
        y, state = super().forward(x_BTD, **more)
        return 1.5 * y, state


class DrawsFeaturesItDoesNotSave(Sound):
    def __init__(self, config: LinearMixerOptions, site: AttentionSite) -> None:
        super().__init__(config, site)
        self.features = torch.rand(site.key_dim, dtype=torch.float64)

    def recur(self, x_BTD: Tensor, q: Tensor, *kv: Tensor, **more: Any) -> tuple[Tensor, State]:
        return super().recur(x_BTD, q * self.features.to(q.dtype), *kv, **more)


class DoublingOptions(Options):
    """Reads 64 where 32 was saved."""

    @field_validator("chunk_size")
    @classmethod
    def _double(cls, size: int) -> int:
        return 2 * size


class DrawsFromTheGlobalGenerator(Sound):
    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.decay.uniform_()


class LeavesAParameterWithoutARole(Sound):
    def roles(self) -> Mapping[str, frozenset[str]]:
        return {name: found for name, found in super().roles().items() if name != "decay"}


class MiscountsItsState(Sound):
    def empty_state(self, *size: Any, **more: Any) -> State:
        state = super().empty_state(*size, **more)
        return state | {"memory": state["memory"].half()}


class ForgetsWithoutAToken(Sound):
    def forward(self, x_BTD: Tensor, *, state: State | None = None, **more: Any) -> tuple[Tensor, State]:
        return super().forward(x_BTD, state=state if x_BTD.shape[1] else None, **more)


class ReadsItsGate(Sound):
    def _norm_and_gate(self, x_BTD: Tensor, y_BTNV: Tensor) -> Tensor:
        gate_BTNV = F.linear(x_BTD, self.g_proj.weight).view(y_BTNV.shape)
        return norm_and_gate(y_BTNV, self.g_norm, gate_BTNV)


class StandAlone(nn.Module):
    """A mixer on nn.Module alone, a loop over tokens."""

    projections: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

    def __init__(self, config: Options, site: AttentionSite) -> None:
        super().__init__()
        self.site = site
        self.q_proj = nn.Linear(site.hidden_size, site.num_heads * site.key_dim)
        self.k_proj = nn.Linear(site.hidden_size, site.num_key_value_heads * site.key_dim)
        self.v_proj = nn.Linear(site.hidden_size, site.num_key_value_heads * site.value_dim)
        self.keep = nn.Parameter(torch.zeros(site.num_heads))

    def roles(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset({"new", "decay"} if name == "keep" else {"qkv"}) for name, _ in self.named_parameters()}

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        self.keep.fill_(2.0)
        if style == "scratch":
            for name in self.projections.values():
                for parameter in getattr(self, name).parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / self.site.hidden_size**0.5)

    def empty_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        shape = batch_size, self.site.num_heads, self.site.key_dim, self.site.value_dim
        return {"s": torch.zeros(shape, device=device, dtype=dtype)}

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        if x_BTD.shape[1] == 0:
            return without_tokens(self, self.site, x_BTD, state)
        site, (batch, length, _) = self.site, x_BTD.shape
        share = site.num_heads // site.num_key_value_heads
        q = self.q_proj(x_BTD).unflatten(-1, (-1, site.key_dim))
        k = self.k_proj(x_BTD).unflatten(-1, (-1, site.key_dim)).repeat_interleave(share, 2)
        v = self.v_proj(x_BTD).unflatten(-1, (-1, site.value_dim)).repeat_interleave(share, 2)
        memory = x_BTD.new_zeros(batch, site.num_heads, site.key_dim, site.value_dim) if state is None else state["s"]
        outputs = []
        for t in range(length):
            if segments_BT is not None and t:
                memory = memory * (segments_BT[:, t] == segments_BT[:, t - 1])[:, None, None, None]
            after = torch.sigmoid(self.keep)[:, None, None] * memory + k[:, t, :, :, None] * v[:, t, :, None]
            memory = after if valid_BT is None else torch.where(valid_BT[:, t, None, None, None], after, memory)
            outputs.append((q[:, t, :, None] @ memory).squeeze(2))
        return torch.stack(outputs, 1), {"s": memory}
