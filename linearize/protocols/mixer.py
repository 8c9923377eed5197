"""A linear-time token mixer, and what one may offer besides.

Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K and V width of one key and value head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


State = dict[str, "Tensor"]


SeedStyle = Literal["mimic", "scratch"]


class Mixer(Protocol):
    """A linear-time token mixer; in truth an nn.Module, whose constructor takes (config, site).

    In training mode, which stages turn on, it may draw from torch's global generator, as dropout does: that is seeded
    anew at every optimizer step, so that a run which was stopped ends as one that was not.
    """

    projections: Mapping[str, str | Sequence[str]]
    """Which modules can take what the teacher has: {"q": "q_proj", "k": "k_proj", "v": "v_proj"}.

    "q", "k" and "v" lead to an nn.Linear, by its dotted path; several paths: each takes a copy. "q_norm" and "k_norm"
    lead to a module whose ``weight`` and ``bias``, if it has one, have the shapes of :class:`AttentionWeights`. All
    parameters of these modules have the role "qkv".
    """

    def roles(self) -> Mapping[str, frozenset[str]]:
        """Every parameter name with its roles: just one of "qkv" and "new", and finer ones ("conv", "decay", ...)."""
        ...

    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Sets every "new" parameter so that the mixer mimics attention as it can, or from scratch (q, k, v too)."""
        ...

    def empty_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """The state before the first token, which ``forward`` takes as it takes None.

        Its names, shapes (batch first) and dtypes are those of every later state, so that memory can be allocated and
        counted without a forward; device "meta" allocates none. The device need not be that of the parameters.

        Args:
            dtype: that of ``x_BTD``; tensors that are kept more precisely have their own.
        """
        ...

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Per-head output [B, T, N, V] before the output projection, and the state after the last token.

        T may be 0: the output is empty and the state is the one given, or ``empty_state``.

        Args:
            valid_BT: bool; a False token writes nothing and does not decay. None: all are valid.
            position: cos and sin as transformers passes them; None where the site has no rotary embedding.
            segments_BT: int; where it changes, the state starts anew (packed documents).
            state: what an earlier call returned; its size does not depend on T.
        """
        ...


class RemarkingMixer(Protocol):
    """What a mixer offers besides, when its options may do something else at a site than whoever set them expects."""

    def remarks(self) -> Sequence[str]:
        """A sentence for each option that does nothing here, or drops something; told with the plan, by sites."""
        ...


class RepeatingMixer(Protocol):
    """What a mixer offers besides, when it has k or v once for each query head where the teacher shares them."""

    repeated: Collection[str]
    """The modules that do, {"k_proj", "v_proj"}: a seeder gives them each of the teacher's heads several times. Without
    this member shapes have to fit."""


class BackedMixer(Protocol):
    """What a mixer offers besides, when kernels compute it."""

    def describe_backends(self, device: torch.device | str) -> Sequence[str]:
        """One line for each operation: "ssd on cuda: fla 0.6", by its options.

        Raises:
            BackendError: a backend that the options name cannot run on the device.
        """
        ...


class BranchedMixer(Protocol):
    """What a mixer offers besides, when its output is a sum of branches: evaluation then tells what each one does."""

    branches: Sequence[str]
    """Their names."""

    left_out: frozenset[str]
    """Branches that add zeros now; none unless someone looks. The states that a call gives have the same shapes."""


class AveragingMixer(Protocol):
    """What a mixer offers besides, when its output is an average of values with weights that are never negative.

    Something else may then see the last tokens in its place, and both be divided by the sum of all weights.
    """

    def start_after(self, tokens: int) -> None:
        """From now on leaves each token's last ``tokens``, itself included, to something else.

        Raises:
            PluginError: with its options the output is no such average; names them.
        """
        ...

    def sums(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None,
        position: tuple[Tensor, Tensor] | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """As ``forward``; [B, T, N, V + 1], at least fp32: the weighted sum of values, then that of weights.

        T is at least 1.
        """
        ...
