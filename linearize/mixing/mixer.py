"""All of a mixer but its recurrence.

    v, k, q = act(conv([W_v x, W_k x, W_q x]))       q, k = rotary(norm(q), norm(k)); each step where it is asked for
    y = recurrence(x, q, k, v)                       the one thing that a mixer adds
    output = RMSNorm(y) · SiLU(W_g x)                per head, before the teacher's output projection

Heads and widths come from the site, so that the teacher's projections fit: k and v are shared by query heads exactly as
in the teacher, unless the options give each query head its own; each query head has a state of its own either way.
Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K key width, V value width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from linearize.errors import BackendError, PluginError
from linearize.mixing.convolution import ShortConvolution
from linearize.mixing.draw import fill_linear, fill_xavier
from linearize.mixing.empty import without_tokens
from linearize.mixing.norms import norm_and_gate, unit_length
from linearize.mixing.options import MixerOptions, QkNorm
from linearize.mixing.rotary import rotate
from linearize.ops.backends import Choice, choose
from linearize.protocols import AttentionSite, SeedStyle, State

# mmMamba's: small enough that a fresh gate does not drive the first steps, which is what its Xavier gain is for.
GATE_GAIN = 2**-2.5


class LinearMixer(nn.Module):
    """The base of mixers over :mod:`linearize.ops`; follows :class:`linearize.protocols.Mixer`.

    A mixer defines ``recur`` and ``empty_recurrent_state``, and where it has parameters of its own ``add_parameters``,
    ``initialize_own`` and ``own_roles``.

    Args:
        operation: what the recurrence is called in :mod:`linearize.ops.backends`; None where ``recur`` is plain torch.
        backend: the name of its backend, or "auto".
        rope: turn q and k by the position that the site passes, in the pairs of numbers that its teacher turns.

    Attributes:
        num_key_value_heads: M, the heads of k and v: the site's, or as many as query heads.
        repeated: the modules into which a seeder repeats the teacher's key-value heads, once for each query head.
    """

    projections: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
    own_roles: ClassVar[Mapping[str, str]] = {}
    """The finer role of each parameter, or module with parameters, that the mixer itself adds, by its first name.

    A parameter with the role "decay" and fewer than two dimensions keeps fp32 where the model becomes bf16 or fp16.
    """

    def __init__(
        self,
        config: MixerOptions,
        site: AttentionSite,
        *,
        operation: str | None = None,
        backend: str = "auto",
        qk_norm: QkNorm = "none",
        rope: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.site = config, site
        self.operation, self.backend, self.qk_norm, self.rope = operation, backend, qk_norm, rope
        is_grouped = config.key_value_heads == "grouped"
        self.num_key_value_heads = site.num_key_value_heads if is_grouped else site.num_heads
        self.repeated = frozenset[str]() if is_grouped else frozenset({"k_proj", "v_proj"})
        width, heads, groups = site.hidden_size, site.num_heads, self.num_key_value_heads
        self.q_width, self.k_width, self.v_width = heads * site.key_dim, groups * site.key_dim, groups * site.value_dim
        self.q_proj = nn.Linear(width, self.q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, self.k_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, self.v_width, bias=config.qkv_bias)
        if config.conv_width:
            self.conv1d = ShortConvolution(self.v_width + self.k_width + self.q_width, config)
        if qk_norm == "rms":
            self.q_norm = nn.RMSNorm(site.key_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(site.key_dim, eps=config.norm_eps)
        self.add_parameters()
        if config.output_norm:
            self.g_norm = nn.RMSNorm(site.value_dim, eps=config.norm_eps)
        if config.gate:
            self.g_proj = nn.Linear(width, heads * site.value_dim, bias=False)

    def add_parameters(self) -> None:
        """Creates the parameters of the recurrence; ``config`` and ``site`` are there already."""

    def initialize_own(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Sets the parameters of ``add_parameters``; see ``initialize``. Runs without gradients."""

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
        """The recurrence over ready q, k and v: its output [B, T, N, V], and its state after the last token.

        An invalid token has to write nothing and to leave the state undecayed; its q, k and v may hold anything finite.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no recurrence; define recur(), which returns the output [B, T, N, V] and "
            "the state after the last token"
        )

    def empty_recurrent_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """What ``recur`` has in its state before the first token; see ``empty_state``."""
        raise NotImplementedError(
            f"{type(self).__name__} does not define its state; define empty_recurrent_state(), which returns zeros "
            "with the names, shapes and dtypes of the state that recur() returns"
        )

    def empty_memory(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Zeros [B, N, K, V] in at least fp32: the state of every operation but "slots" and "conv"."""
        shape = batch_size, self.site.num_heads, self.site.key_dim, self.site.value_dim
        return torch.zeros(shape, device=device, dtype=torch.promote_types(dtype, torch.float32))

    def empty_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """See :class:`linearize.protocols.Mixer`: the recurrence's and, with a convolution, "conv" [B, C, W-1]."""
        state: State = {}
        if self.config.conv_width:
            shape = batch_size, self.v_width + self.k_width + self.q_width, self.config.conv_width - 1
            state["conv"] = torch.zeros(shape, device=device, dtype=dtype)
        return state | self.empty_recurrent_state(batch_size, device=device, dtype=dtype)

    def remarks(self) -> list[str]:
        """See :class:`linearize.protocols.RemarkingMixer`."""
        found = []
        if self.rope and not self.site.has_rope:
            found.append("rope = true changes nothing, since the teacher's attention has no positions there")
        if self.site.qkv_bias and not self.config.qkv_bias:
            found.append("the teacher's biases of q, k and v are dropped; qkv_bias = true keeps them")
        return found

    def roles(self) -> Mapping[str, frozenset[str]]:
        """Every parameter name with its roles.

        Raises:
            PluginError: the mixer added a parameter that ``own_roles`` does not name.
        """
        finer = {"conv1d": "conv", "g_proj": "gate", "g_norm": "norm", "q_norm": "norm", "k_norm": "norm",
                 **self.own_roles}  # fmt: skip
        qkv = set(self.projections.values())
        found = {}
        for name, _ in self.named_parameters():
            part = name.split(".")[0]
            if part not in qkv and part not in finer:
                raise PluginError(
                    f"mixer {type(self).__name__} has a parameter '{name}', but its own_roles name no '{part}'; they "
                    f"name {', '.join(self.own_roles) or 'nothing'}"
                )
            found[name] = frozenset({"qkv"}) if part in qkv else frozenset({"new", finer[part]})
        return found

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Sets every "new" parameter, and for "scratch" the projections of q, k and v too.

        "mimic": the convolution passes its input through. "scratch": PyTorch's ranges for linear layers and
        convolutions. The gate is Xavier with gain 2^-2.5 and norms are 1 in both.
        """
        if style == "scratch":
            for linear in (self.q_proj, self.k_proj, self.v_proj):
                fill_linear(linear, generator)
        self.initialize_own(style, generator)
        if self.config.conv_width:
            self.conv1d.initialize(style, generator)
        if self.config.gate:
            fill_xavier(self.g_proj, GATE_GAIN, generator)
        for name in ("g_norm", "q_norm", "k_norm"):
            if hasattr(self, name):
                getattr(self, name).weight.fill_(1.0)

    def recurrence(self, device: torch.device | str, *, num_tokens: int = 0) -> Choice:
        """The kernel of ``operation`` that runs on ``device``.

        Args:
            num_tokens: T of the call; one token has kernels of its own, see :func:`linearize.ops.backends.choose`.

        Raises:
            BackendError: the backend cannot run there, or has no such operation.
        """
        assert self.operation is not None, f"{type(self).__name__} names no operation"
        return choose(self.operation, self.backend, device, num_tokens=num_tokens)

    def describe_backends(self, device: torch.device | str) -> list[str]:
        """One line for each kernel that this mixer runs on ``device``.

        Raises:
            BackendError: one that its options name cannot run there.
        """
        asked = {} if self.operation is None else {"backend": (self.operation, self.backend)}
        if self.config.conv_width:
            asked["conv_backend"] = "conv", self.config.conv_backend
        choices = []
        for option, (operation, name) in asked.items():
            try:
                choices.append(choose(operation, name, device))
            except BackendError as error:
                raise BackendError(error.text, option=option, found=name) from None
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
        """See :class:`linearize.protocols.Mixer`; ``position`` is read only with ``rope``.

        The state is that of the recurrence and, with a convolution, "conv" [B, C, W-1].
        """
        if x_BTD.shape[1] == 0:
            return without_tokens(self, self.site, x_BTD, state)
        q_BTNK, k_BTMK, v_BTMV, conv_state = self.queries_keys_values(
            x_BTD, valid_BT=valid_BT, position=position, segments_BT=segments_BT, state=state
        )
        y_BTNV, new_state = self.recur(
            x_BTD, q_BTNK, k_BTMK, v_BTMV, valid_BT=valid_BT, segments_BT=segments_BT, state=state
        )
        return self._norm_and_gate(x_BTD, y_BTNV), conv_state | new_state

    def queries_keys_values(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None,
        position: tuple[Tensor, Tensor] | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """q [B, T, N, K], k [B, T, M, K] and v [B, T, M, V] as ``recur`` gets them, and a convolution's state."""
        conv_state: State = {}
        v, k, q = self.v_proj(x_BTD), self.k_proj(x_BTD), self.q_proj(x_BTD)
        if self.config.conv_width:
            vkq_BTC, conv_state["conv"] = self.conv1d(
                torch.cat([v, k, q], -1),
                state_BCX=None if state is None else state["conv"], valid_BT=valid_BT, segments_BT=segments_BT,
            )  # fmt: skip
            v, k, q = vkq_BTC.split([self.v_width, self.k_width, self.q_width], -1)
        v_BTMV = v.unflatten(-1, (-1, self.site.value_dim))
        k_BTMK = self._prepare(k.unflatten(-1, (-1, self.site.key_dim)), getattr(self, "k_norm", None), position)
        q_BTNK = self._prepare(q.unflatten(-1, (-1, self.site.key_dim)), getattr(self, "q_norm", None), position)
        return q_BTNK, k_BTMK, v_BTMV, conv_state

    def _prepare(self, x_BTHK: Tensor, norm: nn.RMSNorm | None, position: tuple[Tensor, Tensor] | None) -> Tensor:
        if norm is not None:
            x_BTHK = norm(x_BTHK)
        elif self.qk_norm == "l2":
            x_BTHK = unit_length(x_BTHK, self.config.norm_eps)
        if not self.rope or position is None:
            return x_BTHK
        return rotate(x_BTHK, position, self.site.rope_style)

    def _norm_and_gate(self, x_BTD: Tensor, y_BTNV: Tensor) -> Tensor:
        gate_BTNV = self.g_proj(x_BTD).unflatten(-1, y_BTNV.shape[-2:]) if self.config.gate else None
        return norm_and_gate(y_BTNV, self.g_norm if self.config.output_norm else None, gate_BTNV)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as usual, except that decay constants keep fp32 where the model becomes bf16 or fp16."""
        before = {name: parameter.detach() for name, parameter in self._parameters.items()
                  if parameter is not None and parameter.dim() < 2 and self.own_roles.get(name) == "decay"}  # fmt: skip
        super()._apply(fn, recurse)
        for name, old in before.items():
            parameter: Any = getattr(self, name)
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = old.to(parameter.device, torch.float32)
        return self
